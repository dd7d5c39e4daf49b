"""The server as two replicas on a real Ray cluster: one is killed, and the alias moves."""

from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import psutil
import pytest

from steps.records.errors import ConfigError
from tests.conftest import ROOT, run
from tests.servers import free_port, process
from tests.serving.conftest import QUESTION, Store, models, registered, wait_until  # noqa: F401  fixtures

from .test_sweep_on_ray import RAY, node

pytestmark = pytest.mark.skipif(find_spec("grpc") is None, reason="Ray Serve is not installed: requirements-ray.in")

REPLICA = "ray::ServeReplica:slm:Replica"


def test_arguments_are_keys_of_the_configuration() -> None:
    from steps.extras.ray_serve import application

    with pytest.raises(ConfigError, match=r"serve\.port=70000 cannot be used"):
        application({"replicas": "2", "serve.port": 70000})
    with pytest.raises(ConfigError, match=r"serve\.modle"):
        application({"serve.modle": "models:/x@champion"})


def replicas() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [""])[0] == REPLICA]


def version_at(url: str) -> str | int:
    """Return the version that answers a question at *url*, or the status if none does."""
    answer = httpx.post(f"{url}/v1/chat/completions", json={"messages": QUESTION}, timeout=600)
    return answer.headers["x-model-version"] if answer.status_code == 200 else answer.status_code


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=600).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def url(models: Store) -> Iterator[str]:  # noqa: F811
    """Yield where two replicas answer with the champion."""
    models.point(1)
    address, port = f"127.0.0.1:{free_port()}", str(free_port())
    arguments = ["replicas=2", "cpus=0.4", "serve.model=models:/tiny@champion", "serve.follow_seconds=0.2"]
    head = ["--head", "--port", address.partition(":")[2], "--include-dashboard", "false"]
    with node("127.0.0.1", address, 1, *head):
        started = run("serve", "start", "--address", address, "--http-port", port, **RAY)
        assert started.returncode == 0, started.stderr
        application = ["--name", "slm", "--app-dir", str(ROOT), "steps.extras.ray_serve:application"]
        command = ["serve", "run", "--address", address, *application, *arguments]
        with process(*command, MLFLOW_TRACKING_URI=models.uri, **RAY) as running:
            found = f"http://127.0.0.1:{port}"
            wait_until(lambda: running.poll() is not None or (is_ready(found) and len(replicas()) == 2))
            assert running.poll() is None
            yield found


@pytest.mark.slow
def test_when_a_replica_is_killed_the_other_answers_until_there_are_two_again(url: str) -> None:
    killed, other = replicas()
    engines = killed.children(recursive=True)
    assert engines
    killed.kill()
    assert [version_at(url) for _ in range(10)] == ["tiny/1"] * 10
    wait_until(lambda: len({each.pid for each in replicas()} - {killed.pid, other.pid}) == 1)
    wait_until(lambda: not any(each.is_running() for each in engines))
    assert other.is_running()


@pytest.mark.slow
def test_every_replica_follows_the_alias(url: str, models: Store) -> None:  # noqa: F811
    models.point(2)
    wait_until(lambda: {version_at(url) for _ in range(10)} == {"tiny/2"})
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json={"messages": QUESTION, "stream": True}, timeout=600
    ) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert list(stream.iter_lines())[-2:] == ["data: [DONE]", ""]
