"""watched_child.py: end with the launcher of this entry point, or after ten minutes."""

import time

from steps.safety.processes import watch_launcher

watch_launcher()
print("watches", flush=True)
time.sleep(600)
