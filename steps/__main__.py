"""`python -m steps STEP KEY=VALUE ...` runs one step.

Small on purpose: a process that a step spawns imports the main module again, and its memory is measured.
"""

import sys

from steps.config.schema import STEPS
from steps.flow.entry import execute

if __name__ == "__main__":
    step = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if step not in STEPS:
        print(f"python -m steps STEP KEY=VALUE ...: STEP is one of {', '.join(STEPS)}", file=sys.stderr)
        sys.exit(2)
    execute(step)
