"""The bill of materials of a version: a CycloneDX ML-BOM, https://cyclonedx.org/capabilities/mlbom/.

It lists the model with its files, licence and model card, the task that it was measured on, and its requirements.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from packageurl import PackageURL
from packaging.requirements import Requirement

from steps.records.files import File


def ml_bom(
    name: str,
    version: str,
    tags: Mapping[str, str],
    files: Sequence[File],
    requirements: Sequence[str],
    task: str,
    metrics: Mapping[str, float],
) -> str:
    """Return, as JSON text, the ML-BOM of *version* of *name*: the model that *tags* describe, with its *files*.

    *requirements*: the model's pip requirements, as `name==version`. *metrics*: its metrics on *task*, by name;
    `<name>_low` and `<name>_high` bound an interval.
    """
    model = Component(
        bom_ref="model",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=name,
        version=version,
        description=f"{tags['wrapper']} of {tags['model.location']}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=tags["model.sha256"])],
        licenses=_licences(tags["model.licence"]),
        components=[_file(file) for file in files],
        external_references=_origin(tags),
        properties=[Property(name=f"slm-project:{key}", value=value) for key, value in sorted(tags.items())],
    )
    dataset = Component(
        bom_ref="task", type=ComponentType.DATA, name=task, description="the examples of the evaluation"
    )
    packages = [_package(Requirement(requirement)) for requirement in requirements]
    bom = Bom(components=[dataset, *packages])
    bom.metadata.component = model
    bom.register_dependency(model, packages)
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library has no class for a model card.
    content["metadata"]["component"]["modelCard"] = _model_card(metrics)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def bom_of(version: ModelVersion, files: Sequence[File], requirements: Sequence[str], evaluate: Run) -> str:
    """Return the ML-BOM of *version* as JSON text, with the metrics that the run *evaluate* measured of it."""
    own = f"{version.tags['wrapper']}."
    metrics = {name.removeprefix(own): v for name, v in evaluate.data.metrics.items() if name.startswith(own)}
    task = evaluate.data.params["evaluate.task"]
    return ml_bom(version.name, str(version.version), version.tags, files, requirements, task, metrics)


def _licences(stated: str) -> list[Any]:
    return [] if stated == "not stated" else [LicenseFactory().make_from_string(stated)]


def _origin(tags: Mapping[str, str]) -> list[ExternalReference]:
    """Return the checkpoint's URL if it comes from the hub."""
    # Old versions lack this tag, and a location such as models/tiny_phi3 could be either.
    if tags.get("model.source") != "hub":
        return []
    url = XsUri(f"https://huggingface.co/{tags['model.location']}")
    return [ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=url)]


def _file(file: File) -> Component:
    return Component(
        bom_ref=f"file:{file.path}",
        type=ComponentType.FILE,
        name=file.path,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
        properties=[Property(name="slm-project:bytes", value=str(file.size))],
    )


def _package(requirement: Requirement) -> Component:
    version = str(requirement.specifier).removeprefix("==") or None
    purl = PackageURL("pypi", None, requirement.name.lower(), version)
    return Component(
        bom_ref=purl.to_string(), type=ComponentType.LIBRARY, name=requirement.name, version=version, purl=purl
    )


def _model_card(metrics: Mapping[str, float]) -> dict[str, Any]:
    figures = []
    for name, value in sorted(metrics.items()):
        if name.endswith(("_low", "_high")):
            continue
        figure: dict[str, Any] = {"type": name, "value": f"{value:.6g}", "slice": "all examples of the task"}
        if f"{name}_low" in metrics and f"{name}_high" in metrics:
            bounds = {"lowerBound": f"{metrics[f'{name}_low']:.6g}", "upperBound": f"{metrics[f'{name}_high']:.6g}"}
            figure["confidenceInterval"] = bounds
        figures.append(figure)
    return {
        "modelParameters": {
            "task": "text-generation",
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": figures},
        "considerations": {
            "technicalLimitations": ["Measured on the named task and nothing else; answers can be wrong."],
        },
    }
