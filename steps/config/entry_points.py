"""The types of the configuration of what stands beside the chain: sweep, serve, monitor, export."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Sweep:
    """`objective`: the metric that decides which trial is best; `direction`: `maximize` or `minimize`.

    `jobs`: trials at a time. `ray`: the address of a Ray cluster to run on, `auto` for this machine's own cluster,
    None for this machine. `register`: register the best trial that passed its gates; otherwise register none.
    """

    objective: str
    direction: str
    jobs: int
    ray: str | None
    register: bool


@dataclass
class Serve:
    """`model`: the URI of a model, such as models:/name@champion, which is followed when the alias moves.

    `host`, `port`: where to listen; a host other than this machine's loopback needs `api_key_env`, the name of the
    environment variable that holds the key. `cors_origins`: sites whose pages may ask. `max_body_bytes`: the largest
    body. `max_waiting`: how many answers may be unfinished. `timeout`: seconds for an answer. `grace`: seconds for
    answers that have begun when the server is told to end. `follow_seconds`: seconds between two looks at the alias.
    `trace_share`: share of requests that are traced. `trace_text`: whether traces hold the texts.
    """

    model: str
    host: str
    port: int
    api_key_env: str | None
    cors_origins: list[str]
    max_body_bytes: int
    max_waiting: int
    timeout: float
    grace: int
    follow_seconds: float
    trace_share: float
    trace_text: bool


@dataclass
class Monitor:
    """`model`: the version to watch, models:/<name>@<alias> or models:/<name>/<version>.

    Its newest `limit` requests of the last `window_hours` are judged; null: however old. `reask`: number of live
    prompts to ask again, of this version and of the reference; the newest whose texts were kept. `rollback`: make the
    previous champion champion again if a gate fails by the fault of the version. `gates`: by name, the fields of a
    `steps.evaluation.gates.Gate`.
    """

    model: str
    window_hours: float | None
    limit: int
    reask: int
    rollback: bool
    gates: dict[str, Any]


@dataclass
class Export:
    """`model`: the URI of a registered ONNX version.

    `path`: the folder to make. `archive`: whether to make `<path>.tar.zst` too.
    """

    model: str
    path: str | None
    archive: bool
