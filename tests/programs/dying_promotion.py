"""dying_promotion.py VERSION|rollback N: make VERSION champion, or roll back, and be killed after N writes."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from mlflow import MlflowClient

from steps.registry.aliases import changing, make_champion, roll_back

action, survive = sys.argv[1], int(sys.argv[2])
writes = 0


def dying(write: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        global writes
        if writes == survive:
            os.kill(os.getpid(), signal.SIGKILL)
        writes += 1
        return write(*args)

    return wrapped


with (
    patch("steps.registry.aliases.damage_of_version", lambda _version: None),
    patch.object(MlflowClient, "set_registered_model_alias", dying(MlflowClient.set_registered_model_alias)),
    patch.object(MlflowClient, "set_registered_model_tag", dying(MlflowClient.set_registered_model_tag)),
):
    if action == "rollback":
        roll_back("echo", "back")
    else:
        with changing("echo"):
            make_champion("echo", action, "forward")
