"""Load the model in a folder, fork, and ask it in both processes."""

import os
import sys
from pathlib import Path

from tests.wrappers.asking import ask, load

model = load(Path(sys.argv[1]), threads=1)
expected = model.predict(None, ask("hello"))[0]["choices"]
fork = os.fork()
if fork == 0:
    status = model.predict(None, ask("hello"))[0]["choices"] != expected
    model.engine.close()
    os._exit(status)
assert os.waitpid(fork, 0)[1] == 0
assert model.predict(None, ask("hello"))[0]["choices"] == expected
