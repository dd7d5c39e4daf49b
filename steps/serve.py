"""serve: answers OpenAI's API with a registered model, until it gets a signal.

    mlflow run . -e serve -P serve.model=models:/tiny_phi3@champion

It makes no run of its own. The one that `mlflow run` makes for it is FINISHED after a signal, when all answers are
given. docs/guides/serve.md is the guide.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

from steps.config.schema import Config
from steps.flow.entry import command
from steps.records.tags import PROCESS, STEP
from steps.safety.processes import process_tag
from steps.safety.secrets import remove_credentials
from steps.serving.server import serve


def main(config: Config, _overrides: list[str]) -> None:
    """Serve the model that *config* names."""
    with closed_run():
        serve(config.serve, config.question)


@contextmanager
def closed_run() -> Iterator[None]:
    """Mark the run that `mlflow run` made for this process as FINISHED, or after an error as FAILED."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id is None:
        yield
        return
    client = MlflowClient()
    remove_credentials(run_id)
    client.update_run(run_id, name="serve")
    for key, value in {STEP: "serve", PROCESS: process_tag()}.items():
        client.set_tag(run_id, key, value)
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        os.environ.pop("MLFLOW_RUN_ID", None)
        client.set_terminated(run_id, status)


if __name__ == "__main__":
    command("serve", main)
