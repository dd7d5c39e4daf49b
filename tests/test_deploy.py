"""The files in deploy/ can be read, agree with what MLflow's image serves, and docs/guides/deploy.md speaks of each."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.models.container import DEFAULT_NGINX_SERVER_PORT

from steps.config.command_line import compose_config
from tests.conftest import ROOT

FILES = sorted(path for path in (ROOT / "deploy").rglob("*") if path.is_file())


def documents(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(text)] if path.suffix == ".json" else list(yaml.safe_load_all(text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_can_be_read_and_the_guide_speaks_of_it(path: Path) -> None:
    assert all(documents(path))
    assert path.relative_to(ROOT).as_posix() in (ROOT / "docs" / "guides" / "deploy.md").read_text()


def test_the_guide_names_no_file_that_is_not_there() -> None:
    named = re.findall(r"deploy/[\w./-]+\.(?:yaml|json)", (ROOT / "docs" / "guides" / "deploy.md").read_text())
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
