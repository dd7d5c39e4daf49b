"""Load the model in a folder with a number of threads, begin to stream, and exit; or sleep, to be killed.

Prints how many threads the engine has, and its process id.
"""

import os
import sys
import time
from pathlib import Path

import psutil

from tests.wrappers.asking import ask, load

folder, threads, *options = sys.argv[1:]
if "one-cpu" in options:
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
assert not {"torch", "transformers", "onnxruntime_genai", "onnxruntime"} & sys.modules.keys()
model = load(Path(folder), threads=int(threads))
(engine,) = psutil.Process().children()
print(engine.num_threads())
print(engine.pid, flush=True)
stream = model.predict_stream(None, ask("hello", max_tokens=500))
next(stream)
assert not {"torch", "transformers"} & sys.modules.keys()
if "sleep" in options:
    time.sleep(60)
