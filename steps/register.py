"""register: reads a run of evaluate that passed; writes a version of the registered model for each candidate.

A version's tags say where it comes from; its description is a model card. The newest build that passed becomes
`challenger`. It becomes `champion` too if there is none yet, or with `register.promote=true` if it is at least as good
as the champion. `register.bom` adds a bill of materials to each version, `register.sign_key` a signature.

Two options register nothing: `register.rollback=true` makes the previous champion champion again, and
`register.verify_key` verifies a signature.
"""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from steps.config.schema import BUILD, CANDIDATES, STEPS, Config, project_path
from steps.extras.signing import require_key, sign_version, verify_version
from steps.logged_models.logged_model import checked_model, stated_files
from steps.records.artifacts import REGISTERED, SCORES
from steps.records.errors import StepError
from steps.records.step import Inputs, Outputs
from steps.records.tags import CONTENT, REGISTERED_AS
from steps.registry.aliases import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    challenge,
    changing,
    history,
    make_champion,
    number_with,
    roll_back,
    settle,
    with_alias,
)
from steps.registry.card import Scores, model_card
from steps.registry.promotion import Promotion, promote
from steps.registry.versions import passed_gates, refuse_new_signature, run_of, version_of, version_tags


def run(config: Config, inputs: Inputs) -> Outputs:
    """Register, or roll back (`register.rollback`), or verify a signature (`register.verify_key`)."""
    if config.register.rollback:
        roll_back_champion(config.register.name, config.register.reason)
        return Outputs({})
    if config.register.verify_key:
        verify(config.register.name, config.register.version, config.register.verify_key)
        return Outputs({})
    return register(config, inputs["evaluate"])


def register(config: Config, evaluate: Run) -> Outputs:
    """Register every candidate of the run *evaluate*, and promote the build if `register.promote` asks for it."""
    name, client = config.register.name, MlflowClient()
    keys = {candidate: str(STEPS[step].run_key) for candidate, step in CANDIDATES.items()}
    runs = {candidate: client.get_run(evaluate.data.tags[key]) for candidate, key in keys.items()}
    versions = register_versions(runs, evaluate, config)
    promotion = None
    if config.register.promote:
        promotion = promote(name, versions[BUILD], evaluate, config.register.promote_margin)
        record_promotion(name, versions[BUILD], promotion)
    numbers = {candidate: str(version.version) for candidate, version in versions.items()}
    mlflow.set_tags({f"{REGISTERED_AS}{each.version}": each.tags[CONTENT] for each in versions.values()})
    log_registered(name, versions=numbers, promotion=asdict(promotion) if promotion else None)
    if promotion and not promotion.promoted:
        kept = f"version {promotion.against} of {name} stays {CHAMPION}, version {numbers[BUILD]} is {CHALLENGER}"
        msg = f"not promoted: {promotion.reason}; {kept}"
        raise StepError(msg)
    uris = {f"{candidate}_version_uri": f"models:/{name}/{number}" for candidate, number in numbers.items()}
    return Outputs(uris | {"model_uri": f"models:/{name}/{numbers[BUILD]}"})


def scores_of(evaluate: Run, gates: str, candidate: str) -> Scores:
    """Return the scores of *candidate* in the run *evaluate*; *gates* is the text of its gates.json."""
    table: str = mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/{SCORES}")
    reasons = [gate["reason"] for gate in json.loads(gates)["gates"]]
    examples = int(evaluate.data.metrics[f"{candidate}.task.examples"])
    return Scores(table, reasons, examples, evaluate.data.params["evaluate.task"])


def register_versions(runs: dict[str, Run], evaluate: Run, config: Config) -> dict[str, ModelVersion]:
    """Return the version for each candidate's run in *runs*; the build becomes challenger.

    All checks come before the first change. Aliases move last, to complete versions. Raises StepError if a check fails.
    """
    name, gates = config.register.name, passed_gates(evaluate)
    with ExitStack() as stack:
        folders = {candidate: stack.enter_context(checked_model(built))[1] for candidate, built in runs.items()}
        tags = {candidate: version_tags(candidate, built, evaluate, gates) for candidate, built in runs.items()}
        if config.register.sign_key:
            require_key(project_path(config.register.sign_key))
        stack.enter_context(changing(name))
        champion = with_alias(name, CHAMPION)
        refuse_new_signature(name, champion, folders[BUILD])
        versions = {}
        for candidate, built in runs.items():
            versions[candidate] = version_of(name, built, tags[candidate])
        for candidate, version in versions.items():
            if not version.description:  # else it has the card of the evaluation that its tags name
                scores = scores_of(evaluate, gates, candidate)
                card = model_card(name, str(version.version), tags[candidate], scores, config.question)
                MlflowClient().update_model_version(name, str(version.version), card)
            complete_version(candidate, version, folders[candidate], evaluate, config)
        settle(name)
        challenge(name, str(versions[BUILD].version))
        if champion is None:
            make_champion(name, str(versions[BUILD].version), "the first that passed")
    return versions


def complete_version(candidate: str, version: ModelVersion, folder: Path, evaluate: Run, config: Config) -> None:
    """Log the bill of materials and the signature of *version* that *config* asks for; its model lies in *folder*."""
    if config.register.bom:
        log_bom(candidate, version, folder, evaluate)
    if config.register.sign_key:
        sign_version(version, project_path(config.register.sign_key), folder)


def log_bom(candidate: str, version: ModelVersion, folder: Path, evaluate: Run) -> None:
    """Log the bill of materials of *version*, whose model lies in *folder*."""
    from steps.extras.bom import bom_of  # needs an extra

    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    bom = bom_of(version, stated_files(run_of(version)), requirements, evaluate)
    mlflow.log_text(bom, f"bom/{candidate}.cdx.json")


def record_promotion(name: str, version: ModelVersion, promotion: Promotion) -> None:
    """Record *promotion* in tags of the version and of the active run, and print it."""
    client, verdict = MlflowClient(), "promoted" if promotion.promoted else "not promoted"
    client.set_model_version_tag(name, str(version.version), "promotion", f"{verdict}: {promotion.reason}")
    mlflow.set_tags({"promotion": verdict, "promotion.reason": promotion.reason})
    if difference := promotion.difference:
        bounds = {"": difference.value, "_low": difference.low, "_high": difference.high}
        mlflow.log_metrics({f"promotion.difference{end}": value for end, value in bounds.items()})
    if promotion.promoted:
        print(f"version {version.version} of {name} is {CHAMPION}: {promotion.reason}", flush=True)


def roll_back_champion(name: str, why: str | None) -> None:
    """Make the previous champion of *name* champion again, and print it."""
    change = roll_back(name, f"rolled back: {why}" if why else "rolled back")
    mlflow.set_tags({f"rollback.{key}": value for key, value in asdict(change).items() if value is not None})
    log_registered(name, rollback=asdict(change))
    print(f"version {change.version} of {name} is {CHAMPION} again; version {change.replaced} is {PREVIOUS}")


def verify(name: str, number: int | None, public_key: str) -> None:
    """Verify the signature of version *number* of *name*, by default of its champion, and print the result."""
    version = MlflowClient().get_model_version(name, str(number)) if number else with_alias(name, CHAMPION)
    if version is None:
        msg = f"{name} has no {CHAMPION}: name a version with -P register.version=<number>"
        raise StepError(msg)
    files = verify_version(version, project_path(public_key))
    mlflow.set_tags({"verified": f"models:/{name}/{version.version}", "verified.files": str(files)})
    print(f"version {version.version} of {name} is what the owner of {public_key} signed: {files} files")


def log_registered(name: str, **more: object) -> None:
    """Log the state of the registered model *name*: its aliases, the history of its champions, and *more*."""
    aliases = {alias: number_with(name, alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
    content = {"name": name, **more, "aliases": aliases, "history": [asdict(change) for change in history(name)]}
    mlflow.log_dict(content, REGISTERED)


if __name__ == "__main__":
    from steps.flow.entry import execute

    execute("register")
