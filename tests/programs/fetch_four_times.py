"""fetch_four_times.py NAME: fetch the branch main of the repository NAME in four processes at once."""

import os
import sys

from steps.checkpoint.hub import fetch_checkpoint

children = []
for _ in range(4):
    if (child := os.fork()) == 0:
        status = 1
        try:
            fetch_checkpoint(sys.argv[1], "main", offline=False)
            status = 0
        finally:
            os._exit(status)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
