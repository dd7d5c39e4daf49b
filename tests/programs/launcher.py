"""launcher.py PROGRAM: start PROGRAM as `mlflow run` starts an entry point, say its PID, and wait."""

import subprocess
import sys
import time

child = subprocess.Popen(["bash", "-c", f'SLM_LAUNCHER_PID=$PPID "{sys.executable}" "{sys.argv[1]}"'])
print(child.pid, flush=True)
time.sleep(600)
