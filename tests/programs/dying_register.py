"""dying_register.py FUNCTION KEY=VALUE ...: register, and be killed at the second call of FUNCTION."""

import os
import pkgutil
import signal
import sys
from unittest.mock import patch

from steps.config.command_line import compose_config
from tests.conftest import do_step

done, function = [], pkgutil.resolve_name(sys.argv[1])


def dying(*args: object, **kwargs: object) -> object:
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(function(*args, **kwargs))
    return done[0]


with patch(sys.argv[1], dying):
    do_step("register", compose_config(sys.argv[2:]))
