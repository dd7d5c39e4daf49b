"""Load a model as the engine does, and print which modules that imported."""

import runpy
import sys
from pathlib import Path

program, folder = sys.argv[1:]
engine = runpy.run_path(program, run_name="engine")
engine["OgModel"](Path(folder), 1)
print(*sorted(sys.modules))
