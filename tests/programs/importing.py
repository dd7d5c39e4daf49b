"""importing.py: import a module that takes its time, then wait for a signal."""

import time
from importlib import import_module

from steps.safety.processes import end_on_signals

end_on_signals()
import_module("slow_module")
time.sleep(600)
