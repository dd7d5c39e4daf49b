"""The names and formats on which all rooms agree. Imports nothing of ours.

errors      the errors that a user can mend, and their one line
files       files with their sizes and hashes
artifacts   the names of artifacts, and the list that shows whether they are all still there
tags        the names of tags
step        what a step is given, and what it returns
"""
