"""What every room writes and reads: names on which files agree.

errors.py        ConfigError, StepError, and an error as one line
files.py         files with size and sha256
artifacts.py     artifacts as a folder and as a list; the names of those that two steps share
tags.py          the tags that two files share
step.py          what the flow gives a step, and what the step returns
templates.py     a template, filled in
traces.py        the names in traces, on which the server and monitor agree
onnx_recipes.py  the recipes by which weights become smaller, as configuration and builder name them
"""
