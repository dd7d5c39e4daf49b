"""main: the chain. Starts each step as its MLproject entry point, in a nested run, or reuses a finished run.

Writes `config.yaml`, the resolved configuration, and `flow.json`, how each step went. It knows steps by name only, so
it never loads torch or transformers, and a step's memory is freed when the step ends.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from steps.config.onnx import Interface
from steps.config.schema import STEPS, Config
from steps.config.values import to_yaml
from steps.flow.fingerprint import Fingerprint, fingerprint
from steps.flow.launch import launch
from steps.flow.reuse import decide
from steps.flow.room import require_memory
from steps.flow.runs import input_run, open_run
from steps.flow.side_by_side import end_children, jobs_for, side_by_side
from steps.flow.typed import mlflow_run
from steps.records.errors import ConfigError, StepError
from steps.records.files import hash_text
from steps.records.tags import REUSED_FROM, SNAPSHOT_BYTES, VERDICT, outputs
from steps.safety.lock import one_at_a_time
from steps.safety.processes import GRACE_SECONDS, close_abandoned_runs
from steps.safety.secrets import without_credentials

REUSED = "REUSED"


@dataclass(frozen=True)
class Record:
    """How a step went, as in `flow.json`: `status` of its run or REUSED, wall `seconds`, `outputs`."""

    step: str
    status: str
    run_id: str
    reused_from: str | None
    seconds: float
    reason: str
    outputs: dict[str, str] = field(default_factory=dict)


def run_chain(config: Config, overrides: list[str]) -> dict[str, Run]:
    """Run or reuse the configured steps, and return the run of each. Steps that wait for no other run side by side.

    `flow.json` is updated whenever such a group has ended. Raises StepError for a step that did not finish, or has no
    run to build on.
    """
    parent = mlflow.active_run()
    assert parent is not None
    runs: dict[str, Run] = {}
    records: list[Record] = []
    waiting = list(STEPS)
    while waiting:
        ready = [step for step in waiting if not set(STEPS[step].builds_on) & set(waiting)]
        waiting = [step for step in waiting if step not in ready]
        calls = []
        for step in ready:
            inputs = _inputs(step, runs)
            if step in config.steps:
                _require_inputs(step, inputs)
                # Here and not in the threads below: Python 3.11 cannot parse sources in two threads at once.
                facts = fingerprint(step, config, inputs)
                calls.append(partial(run_step, facts, config, overrides, inputs, parent))
            else:
                runs |= _found(step, config, inputs)
        records += side_by_side(calls, _jobs(config, runs), partial(end_children, grace=GRACE_SECONDS)) if calls else []
        mlflow.log_dict({"steps": [asdict(each) for each in records]}, "flow.json")
        for record in records[len(records) - len(calls) :]:
            if record.status not in (REUSED, "FINISHED"):
                how = f"{record.step} ended {record.status} after {record.seconds:.0f} s"
                msg = f"{how}: fix what it says above, and start again"
                raise StepError(msg)
            if record.status == REUSED:
                mlflow.set_tag(f"{REUSED_FROM}{record.step}", record.run_id)
            runs[record.step] = MlflowClient().get_run(record.run_id)
    return runs


def _jobs(config: Config, runs: Mapping[str, Run]) -> int:
    """Return how many steps may run at a time: `flow.jobs`, or what cores and memory allow for this checkpoint.

    Raises StepError if memory does not suffice for one.
    """
    fetched = runs.get("fetch_model")
    checkpoint_bytes = fetched.data.metrics.get(SNAPSHOT_BYTES, 0) if fetched else 0
    require_memory(checkpoint_bytes)
    return config.flow.jobs or jobs_for(checkpoint_bytes)


def run_step(
    facts: Fingerprint, config: Config, overrides: list[str], inputs: Mapping[str, Run], parent: Run
) -> Record:
    """Run the step of *facts* on *inputs* in a run under *parent*, or reuse a run of it, and say which and why."""
    step = facts.step
    # One lock per store: a flow on another store cannot reuse the result.
    lock = hash_text(f"{mlflow.get_tracking_uri()} {facts.value}")
    with one_at_a_time(lock, waiting=lambda: say(step, config, "WAITING", "another flow is running this step")):
        decision = decide(facts, config, inputs)
        if reused := decision.reused:
            say(step, config, REUSED, f"run {reused.info.run_id}")
            return Record(step, REUSED, reused.info.run_id, reused.info.run_id, 0.0, decision.reason, outputs(reused))
        say(step, config, "STARTED", decision.reason)
        parameters = {str(STEPS[made_by].run_key): run.info.run_id for made_by, run in inputs.items()}
        parameters["overrides"] = shlex.join(overrides)
        result = launch(step, parameters, parent)
    say(step, config, result.status, f"{result.seconds:.1f} s")
    return Record(step, result.status, result.run_id, None, result.seconds, decision.reason, result.outputs)


def print_plan(config: Config) -> None:
    """Print whether each configured step would run, and why; run nothing."""
    runs: dict[str, Run] = {}
    would_run: set[str] = set()
    for step in STEPS:
        inputs = _inputs(step, runs)
        if step not in config.steps:
            runs |= _found(step, config, inputs)
            continue
        if before := [each for each in STEPS[step].builds_on if each in would_run]:
            would_run.add(step)
            say(step, config, "RUN", f"after {' and '.join(before)}, if what it makes differs")
            continue
        _require_inputs(step, inputs)
        decision = decide(fingerprint(step, config, inputs), config, inputs)
        say(step, config, "REUSE" if decision.reused else "RUN", decision.reason)
        if decision.reused:
            runs[step] = decision.reused
        else:
            would_run.add(step)


def _inputs(step: str, runs: Mapping[str, Run]) -> dict[str, Run]:
    return {made_by: runs[made_by] for made_by in STEPS[step].builds_on if made_by in runs}


def _found(step: str, config: Config, inputs: Mapping[str, Run]) -> dict[str, Run]:
    """Return a run of *step*, which is not to run: the one that its key names, or the newest that fits, or none."""
    order = list(STEPS)
    if not any(order.index(chosen) > order.index(step) for chosen in config.steps):
        return {}  # nothing chosen builds on it
    key = STEPS[step].run_key
    if key is not None and getattr(config, key):
        return {step: input_run(step, config)}
    if len(inputs) < len(STEPS[step].builds_on):
        return {}
    found = decide(fingerprint(step, config, inputs), config, inputs, always_look=True).reused
    return {step: found} if found else {}


def _require_inputs(step: str, inputs: Mapping[str, Run]) -> None:
    for made_by in STEPS[step].builds_on:
        if made_by not in inputs:
            key = STEPS[made_by].run_key
            msg = f"{step} needs a run of {made_by}, and none fits: add it to steps, or give -P {key}=<run id>"
            raise StepError(msg)


def say(step: str, config: Config, status: str, more: str) -> None:
    """Print how *step* goes, in one line that no other thread's can fall into."""
    chosen = [each for each in STEPS if each in config.steps]
    line = f"[{chosen.index(step) + 1}/{len(chosen)}] {step:<23} {status:<9} {more}\n"
    print(line, end="", flush=True)


def summary(runs: Mapping[str, Run], config: Config) -> str:
    """Return the text to print at the end: the figures side by side, the registered model, what to type next."""
    lines = []
    made = {step: outputs(run) for step, run in runs.items()}
    if evaluate := made.get("evaluate"):
        lines += [mlflow.artifacts.load_text(evaluate["summary"]), f"Report:      {evaluate['report']}"]
    uri = without_credentials(mlflow.get_tracking_uri())
    store = shlex.quote(uri)
    following = [f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {store}"]
    if register := made.get("register"):
        lines.append(f"Registered:  {register['model_uri']}")
        header = "-H 'Content-Type: application/json'"
        serving = mlflow_run("-e", "serve", "-P", f"serve.model={register['model_uri']}")
        following += [f"{serving}    # OpenAI's API, and a page to chat on"] if serving else []
        following += [
            f"MLFLOW_TRACKING_URI={store} mlflow models serve -m {register['model_uri']} --env-manager uv -p 5001",
            f"curl -s localhost:5001/invocations {header} -d {shlex.quote(example(config))}",
        ]
    return "\n".join([*lines, *([""] if lines else []), "Next:", *(f"  {line}" for line in following)])


def description(runs: Mapping[str, Run], config: Config) -> str:
    """Return what MLflow's UI shows on the chain's run, in Markdown: what came of it, with links."""
    made = {step: outputs(run) for step, run in runs.items()}
    lines = []
    if register := made.get("register"):
        name, _, version = register["model_uri"].removeprefix("models:/").rpartition("/")
        lines.append(f"Registered: [{register['model_uri']}](#/models/{quote(name, safe='')}/versions/{version})")
    if "evaluate" in made:
        info = runs["evaluate"].info
        report = f"#/experiments/{info.experiment_id}/runs/{info.run_id}/artifacts/report.html"
        lines.append(f"Verdict of the gates: {runs['evaluate'].data.tags[VERDICT]} ([report.html]({report}))")
    return "\n\n".join([f"Model `{config.model.name}`, questions `{config.evaluate.task}`", *lines])


def example(config: Config) -> str:
    """Return the body of a request that asks the registered model the configured question."""
    if config.build_onnx_wrapper.interface is Interface.prompt:
        return json.dumps({"dataframe_split": {"columns": ["prompt"], "data": [[config.question]]}}, ensure_ascii=False)
    return json.dumps({"messages": [{"role": "user", "content": config.question}]}, ensure_ascii=False)


def main(config: Config, overrides: list[str]) -> None:
    """Run the chain. Raises StepError at the first step that does not finish."""
    if config.register.rollback or config.register.verify_key:
        msg = "register.rollback and register.verify_key work with -e register only: add it"
        raise ConfigError(msg)
    for step, facts in STEPS.items():
        key = facts.run_key
        if key is not None and getattr(config, key) and step in config.steps:
            msg = f"{key}={getattr(config, key)} names a run of {step}, which steps includes too: leave one out"
            raise ConfigError(msg)
    with open_run("main", config):
        mlflow.log_text(to_yaml(config), "config.yaml")
        close_abandoned_runs()
        if config.plan:
            mlflow.set_tag(MLFLOW_RUN_NOTE, "A plan (`plan=true`): no step was run.")
            print_plan(config)
            return
        runs = run_chain(config, overrides)
        if evaluate := runs.get("evaluate"):
            # On the chain's own run too, so that MLflow's UI can compare flows.
            mlflow.log_metrics({k: v for k, v in evaluate.data.metrics.items() if not k.startswith("system/")})
        mlflow.set_tag(MLFLOW_RUN_NOTE, description(runs, config))
        print(f"\n{summary(runs, config)}")


if __name__ == "__main__":
    from steps.flow.entry import command

    command("main", main)
