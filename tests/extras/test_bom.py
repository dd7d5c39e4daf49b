"""The bill of materials keeps to CycloneDX's schema, and names the files, the packages, the task and the figures."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from steps.extras.bom import ml_bom
from steps.records.files import File

TAGS = {
    "wrapper": "onnx",
    "model.sha256": "b" * 64,
    "model.source": "hub",
    "model.location": "someone/echo",
    "model.licence": "mit",
}
LOCAL = {"model.source": "local", "model.location": "models/tiny_phi3"}
FILES = [File("MLmodel", 3, "a" * 64), File("artifacts/onnx/model.onnx", 7, "c" * 64)]
METRICS = {"task.accuracy": 0.9, "task.accuracy_low": 0.85, "task.accuracy_high": 0.95, "cost.size_bytes": 10}


def bom(**tags: str) -> str:
    return ml_bom(
        "echo", "3", TAGS | tags, FILES, ["onnxruntime-genai==0.18.0", "Jinja2==3.1.6"], "data/x.jsonl", METRICS
    )


@pytest.mark.parametrize(
    "tags",
    [{}, {"model.licence": "not stated"}, {"model.licence": "a licence of our own"}, LOCAL],
)
def test_it_keeps_to_the_schema(tags: dict[str, str]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom(**tags)) is None


def test_the_model_has_its_licence_files_with_hashes_and_figures_with_intervals() -> None:
    model = json.loads(bom())["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "echo", "3")
    assert model["licenses"] == [{"license": {"id": "MIT"}}]
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == {
        file.path: file.sha256 for file in FILES
    }
    accuracy, size = sorted(
        model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"],
        key=lambda figure: figure["type"] != "task.accuracy",
    )
    assert accuracy["confidenceInterval"] == {"lowerBound": "0.85", "upperBound": "0.95"}
    assert (accuracy["value"], size["value"]) == ("0.9", "10")


def test_it_links_the_hub_for_a_model_that_is_from_there_and_for_no_folder() -> None:
    origins = [
        [reference["url"] for reference in json.loads(text)["metadata"]["component"].get("externalReferences", [])]
        for text in (bom(), bom(**LOCAL))
    ]
    assert origins == [["https://huggingface.co/someone/echo"], []]


def test_its_packages_can_be_looked_up_and_the_model_depends_on_them() -> None:
    content = json.loads(bom())
    packages = {part["name"]: part.get("purl") for part in content["components"]}
    assert packages == {
        "onnxruntime-genai": "pkg:pypi/onnxruntime-genai@0.18.0",
        "Jinja2": "pkg:pypi/jinja2@3.1.6",
        "data/x.jsonl": None,
    }
    (model,) = [each for each in content["dependencies"] if each["ref"] == "model"]
    assert model["dependsOn"] == ["pkg:pypi/jinja2@3.1.6", "pkg:pypi/onnxruntime-genai@0.18.0"]
