"""Processes die, disks fill, servers go away, and people type tokens.

processes   no process outlives its caller, and no run stays RUNNING
lock        one process at a time makes the same thing
outages     a full disk or a missing server, each in one line
secrets     no token in a parameter, a tag, an artifact or a log line
"""
