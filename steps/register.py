"""register: reads what evaluate passed; writes a version of the registered model for each candidate.

A version says in its tags where it comes from and in its description what it is and what it scored. The newest build
that passed is `challenger`; it is `champion` too when there is none yet, or with `register.promote=true`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from steps.flow.command_line import execute
from steps.flow.errors import StepError
from steps.flow.files import hash_text
from steps.flow.logged_model import CONTENT, checked_model
from steps.flow.manifest import MANIFEST, Manifest
from steps.flow.schema import BUILD, CANDIDATES, Config
from steps.flow.tracking import set_output, step_run

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


def passed_gates(evaluate: Run) -> str:
    """Return the text of gates.json of the run *evaluate*. Raises StepError unless its verdict is `passed`."""
    text: str = mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/gates.json")
    verdict = json.loads(text)["verdict"]
    if verdict != "passed":
        msg = f"evaluate run {evaluate.info.run_id} has the verdict {verdict}, not passed: nothing is registered"
        raise StepError(msg)
    return text


def version_tags(candidate: str, built: Run, evaluate: Run, manifest: Manifest, gates: str) -> dict[str, str]:
    """Return where a version comes from: what was wrapped, how, by which code, and what judged it."""
    parameters = built.data.params
    tags = {
        "wrapper": candidate,
        CONTENT: built.data.tags[CONTENT],
        "model.location": manifest.location,
        "model.revision": manifest.revision,
        "model.licence": manifest.licence or "not stated",
        "manifest.sha256": hash_text(manifest.to_json()),
        "gates.sha256": hash_text(gates),
        "evaluate.run_id": evaluate.info.run_id,
        "build.run_id": built.info.run_id,
        **{name: built.data.tags[name] for name in ("code.commit", "code.dirty", "lock.sha256")},
    }
    if candidate == BUILD:
        for option in ("precision", "block_size", "accuracy_level", "execution_provider", "interface"):
            tags[f"onnx.{option}"] = parameters.get(f"build_onnx_wrapper.{option}", "")
    return tags


def description(name: str, tags: Mapping[str, str], scores: str, question: str) -> str:
    """Return the version's model card, in Markdown: what it is, how it was built, what it scored, how to use it.

    *scores* is the Markdown table that evaluate made.
    """
    candidate = tags["wrapper"]
    if candidate == BUILD:
        weights = f"ONNX weights ({tags['onnx.precision']}, block size {tags['onnx.block_size']})"
        how = f"{weights}, built and run by onnxruntime-genai, interface {tags['onnx.interface']}"
    else:
        how = "PyTorch weights as published, in MLflow's transformers flavour, task llm/v1/chat"
    return f"""# {name}, {candidate}

{how}.

- **Checkpoint:** {tags["model.location"]} at revision `{tags["model.revision"]}`
- **Licence:** {tags["model.licence"]}
- **Built by:** commit `{tags["code.commit"]}` (uncommitted changes: {tags["code.dirty"]}), run `{tags["build.run_id"]}`
- **Judged by:** run `{tags["evaluate.run_id"]}`, where gates.json and report.html are

## Scores

{scores}
## Use

```python
model = mlflow.pyfunc.load_model("models:/{name}/<this version>")
model.predict({usage(tags, question)})
```

## Limits

Measured on the task of that run and nothing else; answers can be wrong. The checkpoint's own card says what it was
trained for.
"""


def usage(tags: Mapping[str, str], question: str) -> str:
    """Return an example of the input that the version takes."""
    if tags.get("onnx.interface") == "prompt":
        return json.dumps({"prompt": f"<|user|>\n{question}<|end|>\n<|assistant|>\n"}, ensure_ascii=False)
    return json.dumps({"messages": [{"role": "user", "content": question}]}, ensure_ascii=False)


def refuse_new_signature(name: str, folder: Path) -> None:
    """Raise StepError when the model in *folder* has another signature than the champion, whose users would break."""
    champion = version_with_alias(name, CHAMPION)
    if champion is None:
        return
    current = mlflow.models.get_model_info(f"models:/{name}/{champion.version}").signature
    if current != Model.load(str(folder)).signature:
        fact = f"the signature is not that of {name}@{CHAMPION} (version {champion.version})"
        msg = f"{fact}: register it under another name, with -P register.name=..."
        raise StepError(msg)


def version_of(name: str, model_uri: str, tags: dict[str, str], card: str) -> ModelVersion:
    """Return the version of *name* with the content of *tags*: the one that is there, or a new one for *model_uri*."""
    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name='{name}'"):
        if client.get_model_version(name, version.version).tags.get(CONTENT) == tags[CONTENT]:
            return version
    model_id = model_uri.removeprefix("models:/")
    return client.create_model_version(name, model_uri, tags["build.run_id"], tags, description=card, model_id=model_id)


def version_with_alias(name: str, alias: str) -> ModelVersion | None:
    """Return the version of *name* that has *alias*, or None."""
    try:
        return MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def set_aliases(name: str, version: str, *, promote: bool) -> list[str]:
    """Make *version* challenger, and champion when there is none or with *promote*; return the aliases it was given."""
    client, champion = MlflowClient(), version_with_alias(name, CHAMPION)
    client.set_registered_model_alias(name, CHALLENGER, version)
    if champion is not None and not promote:
        return [CHALLENGER]
    # MLflow gives the number of a version as an int here and as text there.
    if champion is not None and str(champion.version) != version:
        client.set_registered_model_alias(name, PREVIOUS, champion.version)
    client.set_registered_model_alias(name, CHAMPION, version)
    return [CHALLENGER, CHAMPION]


def main(config: Config, _overrides: list[str]) -> None:
    """Register every candidate that the run `evaluate_run_id` passed."""
    with step_run("register", config) as step:
        name, evaluate = config.register.name, step.inputs["evaluate_run_id"]
        gates, client = passed_gates(evaluate), MlflowClient()
        scores: str = mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/scores.md")
        runs = {candidate: client.get_run(evaluate.data.tags[key]) for candidate, key in CANDIDATES.items()}
        with checked_model(runs[BUILD]) as (_uri, folder):
            refuse_new_signature(name, folder)
        versions = {}
        for candidate, built in runs.items():
            fetch = client.get_run(built.data.tags["fetch_run_id"])
            manifest = Manifest.from_json(mlflow.artifacts.load_text(f"{fetch.info.artifact_uri}/{MANIFEST}"))
            tags = version_tags(candidate, built, evaluate, manifest, gates)
            card = description(name, tags, scores, config.question)
            with checked_model(built) as (uri, _folder):
                version = version_of(name, uri, tags, card)
            versions[candidate] = str(version.version)
        aliases = set_aliases(name, versions[BUILD], promote=config.register.promote)
        mlflow.log_dict({"name": name, "versions": versions, "aliases": aliases}, "registered.json")
        for candidate, number in versions.items():
            set_output(f"{candidate}_version_uri", f"models:/{name}/{number}")
        set_output("model_uri", f"models:/{name}/{versions[BUILD]}")


if __name__ == "__main__":
    execute("register", main)
