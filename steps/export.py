"""export: writes a registered ONNX version as a folder, and an archive of it, that answers without MLflow and torch.

    mlflow run . -e export -P export.model=models:/tiny_phi3@champion -P export.path=/tmp/tiny_phi3

The folder appears complete: it is filled beside its place, its example has answered there, and it is renamed. The run
holds the facts (version, bytes, SHA256SUMS), not the files again. docs/guides/export.md is the guide.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from steps.config.schema import Config
from steps.exporting.archive import write_archive
from steps.exporting.checksums import SUMS, damage_of, described, flush
from steps.exporting.folder import PROVENANCE, model_files, requirements_of, write_folder
from steps.exporting.licence import papers_of
from steps.exporting.rehearsal import Recorded, rehearse_example
from steps.exporting.version import build_at, checked_version, uri_of
from steps.extras.signing import SIGNATURE, signed_files
from steps.flow.entry import command, user_folder
from steps.flow.runs import open_run
from steps.records.errors import ConfigError, StepError
from steps.records.files import File, hash_file, hash_text
from steps.records.tags import CONTENT
from steps.registry.versions import run_of
from steps.safety.lock import one_at_a_time

BOM = "bom.cdx.json"


def main(config: Config, _overrides: list[str]) -> None:
    """Export the version that *config* names, in a run of its own."""
    if config.export.path is None:
        msg = "export.path=null cannot be used: expected the folder to make, such as -P export.path=/tmp/my_model"
        raise ConfigError(msg)
    folder = user_folder() / os.path.expanduser(config.export.path)  # noqa: PTH111  Path raises if ~name is nobody
    with open_run("export", config, ("export",)):
        version = build_at(config.export.model)
        mlflow.set_tags({"model": uri_of(version), CONTENT: version.tags[CONTENT]})
        # Two exports to one place would fill the same folder.
        with one_at_a_time(f"export-{hash_text(str(folder))}", waiting=lambda: print(f"waits: {folder}", flush=True)):
            export(version, folder, archive=config.export.archive)


def export(version: ModelVersion, folder: Path, *, archive: bool) -> None:
    """Write *version* to *folder* and, if asked, to an *archive* beside it; record both on the active run.

    A folder that holds this version already is left as it is. Raises StepError for any other that exists.
    """
    packed = folder.with_name(f"{folder.name}.tar.zst")
    if os.path.lexists(folder):
        require_same(version, folder)
        print(f"{folder} already holds {uri_of(version)}, complete", flush=True)
    elif os.path.lexists(packed):
        msg = f"export.path={folder}: {packed} exists without its folder: remove it, or choose another path"
        raise StepError(msg)
    else:
        make_folder(version, folder)
    if archive and not packed.exists():
        make_archive(folder, packed)
    record(version, folder, packed if archive else None)


def require_same(version: ModelVersion, folder: Path) -> None:
    """Raise StepError unless *folder* is a complete export of *version*."""
    remedy = "remove it, or choose another path"
    stated = folder / PROVENANCE
    if not stated.is_file() or json.loads(stated.read_text(encoding="utf-8")).get("model") is None:
        msg = f"export.path={folder} exists, and is no export: {remedy}"
        raise StepError(msg)
    found = json.loads(stated.read_text(encoding="utf-8"))
    if (found["model"], found["tags"][CONTENT]) != (uri_of(version), version.tags[CONTENT]):
        msg = f"export.path={folder} exists, and holds {found['model']} instead of {uri_of(version)}: {remedy}"
        raise StepError(msg)
    if damage := damage_of(folder):
        msg = f"export.path={folder} exists, and is no complete export of {uri_of(version)}: {damage}; {remedy}"
        raise StepError(msg)


def make_folder(version: ModelVersion, folder: Path) -> None:
    """Write the export of *version* beside *folder*, have its example answer, and rename it to *folder*."""
    beside = folder.with_name(f".{folder.name}.export")
    shutil.rmtree(beside, ignore_errors=True)  # what a kill left
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with checked_version(version) as (logged, stated):
            files = model_files(stated)
            others = papers_of(version) | signature_of(version, stated)
            others |= bill_of_materials(version, list(files.values()), requirements_of(logged))
            recorded = recorded_answer(version)
            write_folder(beside, version, logged, files, others, recorded.question)
        rehearse(version, beside, recorded)
        if damage := damage_of(beside):
            msg = f"the export of {uri_of(version)} changed while its example ran: {damage}"
            raise StepError(msg)
        flush(beside)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def make_archive(folder: Path, packed: Path) -> None:
    """Write *folder* to the archive *packed*, which appears complete."""
    beside = packed.with_name(f".{packed.name}.export")
    try:
        write_archive(folder, beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.rename(packed)
    finally:
        beside.unlink(missing_ok=True)


def rehearse(version: ModelVersion, folder: Path, recorded: Recorded) -> None:
    """Have the example in *folder* answer, and tag the active run with how the answer compares with the build's own."""
    if version.tags["onnx.execution_provider"] != "cpu":
        mlflow.set_tag("example", "not run: the model needs a GPU")
        return
    answer = rehearse_example(folder, recorded, uri_of(version))
    if version.tags["onnx.interface"] == "prompt":
        mlflow.set_tag("example", "answers")  # the build was asked without the chat template
        return
    same = answer.startswith(recorded.answer.rstrip("\ufffd"))  # the build's may be shorter: it has a limit of its own
    mlflow.set_tag("example", "answers as the build did" if same else "its answer differs from the build's")
    if not same:
        print(f"the example answers {answer!r}, where the build answered {recorded.answer!r}", flush=True)


def recorded_answer(version: ModelVersion) -> Recorded:
    """Return what the build of *version* was asked, and answered."""
    made = mlflow.artifacts.load_dict(f"{run_of(version).info.artifact_uri}/answer.json")
    return Recorded(made["question"], made["answer"])


def signature_of(version: ModelVersion, stated: Sequence[File]) -> dict[str, bytes]:
    """Return the signature of *version* by its path in an export, or nothing if it is not signed.

    Raises StepError if it does not cover the very files *stated*.
    """
    uri = version.tags.get(SIGNATURE)
    if uri is None:
        return {}
    with tempfile.TemporaryDirectory() as work:
        file = Path(mlflow.artifacts.download_artifacts(uri, dst_path=work))
        signed = signed_files(file)
        for each in stated:
            if signed.get(each.path) != each.sha256:
                msg = f"the signature {uri} of {uri_of(version)} is not one of its {each.path}: sign it again"
                raise StepError(msg)
        return {f"{SIGNATURE}/{file.name}": file.read_bytes()}


def bill_of_materials(version: ModelVersion, files: Sequence[File], requirements: Sequence[str]) -> dict[str, bytes]:
    """Return the bill of materials of an export by its path; without the extra for it, say so and return nothing."""
    if importlib.util.find_spec("cyclonedx") is None:
        print("no bill of materials: pip install -r requirements-supply-chain.txt, and --env-manager local", flush=True)
        return {}
    from steps.extras.bom import bom_of  # needs an extra

    evaluate = MlflowClient().get_run(version.tags["evaluate.run_id"])
    bom = json.loads(bom_of(version, files, requirements, evaluate))
    # They would differ each time, and the specification does not ask for them.
    del bom["serialNumber"], bom["metadata"]["timestamp"]
    return {BOM: (json.dumps(bom, indent=2, ensure_ascii=False) + "\n").encode()}


def record(version: ModelVersion, folder: Path, packed: Path | None) -> None:
    """Log what *folder* and its archive *packed* hold on the active run, and print what to do with them."""
    files = described(folder)
    size = sum(file.size for file in files)
    mlflow.log_metrics({"files": len(files), "bytes": size})
    mlflow.log_artifact(str(folder / SUMS))
    print(f"Exported:  {uri_of(version)} to {folder} ({len(files)} files, {size / 1e6:.1f} MB)")
    if packed is not None:
        mlflow.log_metric("archive_bytes", packed.stat().st_size)
        mlflow.set_tag("archive.sha256", hash_file(packed))
        print(f"Archive:   {packed} ({packed.stat().st_size / 1e6:.1f} MB)")
    print(f"Next:\n  cd {folder} && sha256sum -c {SUMS} && pip install -r requirements.txt")


if __name__ == "__main__":
    command("export", main)
