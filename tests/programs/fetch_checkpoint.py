"""fetch_checkpoint.py NAME: fetch the branch main of the repository NAME."""

import sys

from steps.checkpoint.hub import fetch_checkpoint

fetch_checkpoint(sys.argv[1], "main", offline=False)
