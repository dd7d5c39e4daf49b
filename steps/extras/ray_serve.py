"""The server of `-e serve` as replicas on a Ray cluster, behind Ray's own proxy (requirements-ray.in).

    serve run steps.extras.ray_serve:application replicas=2 serve.model=models:/tiny_phi3@champion

`application` is what Ray calls an application builder. Its arguments are keys of the configuration, `replicas`, and
`cpus`, of each replica. A replica is the whole server with a model and an engine of its own. Ray starts one again that
has died.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import mlflow
from fastapi import FastAPI
from ray import serve

from steps.config.command_line import compose_config, translate
from steps.config.entry_points import Serve
from steps.serving.app import create_app
from steps.serving.metrics import Metrics
from steps.serving.models import Files, Models, Served, find
from steps.serving.server import Follower, key_of
from steps.serving.tracing.traces import Traces


def application(arguments: Mapping[str, object]) -> Any:  # noqa: ANN401  # Ray's Application
    """Return what *arguments* describe, for `serve run` and `serve deploy`. Raises ConfigError if it cannot be used."""
    own = {"replicas": "1", "cpus": "1"} | {key: str(value) for key, value in arguments.items()}
    replicas, cpus = int(own.pop("replicas")), float(own.pop("cpus"))
    overrides, _flags = translate([part for key, value in own.items() for part in (f"--{key}", value)])
    config = compose_config(overrides)
    options, question = config.serve, config.question

    def build() -> FastAPI:
        return server(options, question)

    class Replica:
        """One server."""

    deployment: Any = serve.deployment(
        num_replicas=replicas,
        # The store, as this process knows it. The API's key is in the environment of each node instead: Ray's dashboard
        # shows what is said here.
        ray_actor_options={
            "num_cpus": cpus,
            "runtime_env": {"env_vars": {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}},
        },
        # A replica makes batches of what has reached it; Ray's default would let in 5.
        max_ongoing_requests=options.max_waiting,
        max_queued_requests=options.max_waiting,
        graceful_shutdown_timeout_s=options.grace,
    )
    return deployment(serve.ingress(build)(Replica)).bind()


def server(options: Serve, question: str) -> FastAPI:
    """Return the application of one replica, with its model loaded; called in the replica's event loop.

    Raises StepError if the model cannot be loaded, ConfigError without the key that *options* name.
    """
    key = key_of(options.api_key_env)
    models = Models(Served(Files(find(options.model)), question), question)
    metrics = Metrics(models)
    traces = Traces(options, models, metrics)
    app = create_app(options, models, metrics, traces, key)

    @asynccontextmanager
    async def living(_app: FastAPI) -> AsyncIterator[None]:
        follower = Follower(options, models, metrics)
        if "@" in options.model:
            follower.start()
        if options.trace_share:
            traces.start()
        yield
        follower.ended.set()
        await models.close()
        traces.close()

    app.router.lifespan_context = living
    return app
