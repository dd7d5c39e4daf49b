"""slow_module: takes its time to be imported."""

import time

print("begins", flush=True)
time.sleep(2)
print("complete", flush=True)
