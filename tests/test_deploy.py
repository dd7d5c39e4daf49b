"""The files in deploy/ can be read, agree with what they start, and docs/guides/deploy.md speaks of each."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.models.container import DEFAULT_NGINX_SERVER_PORT

from steps.config.command_line import compose_config
from steps.serving.guard import OPEN
from tests.conftest import ROOT, run

FILES = sorted(path for path in (ROOT / "deploy").rglob("*") if path.is_file())


def documents(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix not in (".json", ".yaml"):
        return [{"lines": text.splitlines()}]  # other tests read these
    return [json.loads(text)] if path.suffix == ".json" else list(yaml.safe_load_all(text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_can_be_read_and_the_guide_speaks_of_it(path: Path) -> None:
    assert all(documents(path))
    assert path.relative_to(ROOT).as_posix() in (ROOT / "docs" / "guides" / "deploy.md").read_text()


def test_the_guide_names_no_file_that_is_not_there() -> None:
    named = re.findall(
        r"deploy/[\w./-]+\.(?:yaml|json|service|conf)", (ROOT / "docs" / "guides" / "deploy.md").read_text()
    )
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_kubernetes_asks_the_port_of_the_image_and_limits_what_a_replica_takes() -> None:
    deployment, service = documents(ROOT / "deploy" / "kubernetes" / "model.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == DEFAULT_NGINX_SERVER_PORT
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/ping", "port": port["name"]}
    assert {"cpu", "memory"} == set(container["resources"]["limits"]) == set(container["resources"]["requests"])
    assert not container["image"].endswith(":latest")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


def test_kubernetes_gives_the_server_time_to_end_and_asks_what_it_answers() -> None:
    deployment, service, budget = documents(ROOT / "deploy" / "kubernetes" / "serve.yaml")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    config = compose_config([*container["args"], "serve.host=0.0.0.0", "serve.api_key_env=SERVE_KEY"])
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert before + config.serve.grace < template["spec"]["terminationGracePeriodSeconds"]
    (port,) = container["ports"]
    assert port["containerPort"] == config.serve.port
    paths = {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    assert {probe: container[probe]["httpGet"]["path"] for probe in paths} == paths
    assert set(paths.values()) < set(OPEN)  # they have no key
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert {name for each in container["env"] for name in [each["name"]]} == {"MLFLOW_TRACKING_URI", "SERVE_KEY"}


def test_the_image_of_the_server_starts_an_entry_point_that_takes_its_configuration() -> None:
    text = (ROOT / "deploy" / "container" / "Dockerfile").read_text()
    python, _m, module, *overrides = json.loads(text.partition("ENTRYPOINT ")[2])
    assert (python, module) == ("python", "steps.serve")
    assert compose_config(overrides).serve.host == "0.0.0.0"
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    assert all((ROOT / name).exists() for name in copied)


def test_systemd_starts_the_server_and_gives_it_time_to_end(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "systemd" / "slm-serve.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    python, _m, module, *overrides = start.split()
    assert module == "steps.serve"
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(seconds) > compose_config(overrides).serve.grace
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "slm-serve.service"
    unit.write_text(text.replace(python, sys.executable))
    done = run("systemd-analyze", "verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


def test_nginx_waits_longer_than_the_server_and_takes_the_same_bodies() -> None:
    text = (ROOT / "deploy" / "nginx" / "slm.conf").read_text()
    serve = compose_config([]).serve
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", text)
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(seconds) > serve.timeout
    assert int(megabytes) * 2**20 == serve.max_body_bytes
    assert "proxy_buffering off;" in text


def test_azure_puts_the_deployment_behind_the_endpoint_as_an_mlflow_model() -> None:
    (endpoint,) = documents(ROOT / "deploy" / "azureml" / "endpoint.yaml")
    (deployment,) = documents(ROOT / "deploy" / "azureml" / "deployment.yaml")
    assert deployment["endpoint_name"] == endpoint["name"]
    assert deployment["model"]["type"] == "mlflow_model"


def test_databricks_serves_a_name_of_unity_catalog_that_register_takes() -> None:
    (endpoint,) = documents(ROOT / "deploy" / "databricks" / "endpoint.json")
    (entity,) = endpoint["config"]["served_entities"]
    assert entity["entity_name"].count(".") == 2
    assert compose_config([f"register.name={entity['entity_name']}"]).register.name == entity["entity_name"]
    assert endpoint["config"]["traffic_config"]["routes"][0]["served_model_name"] == entity["name"]
