"""lock_holder.py NAME SECONDS: hold the lock NAME for SECONDS."""

import sys
import time

from steps.safety.lock import one_at_a_time

with one_at_a_time(sys.argv[1], waiting=lambda: print("waits", flush=True)):
    print("has it", flush=True)
    time.sleep(float(sys.argv[2]))
