"""main: the chain. Starts every step as its MLproject entry point, in a run nested under its own.

Writes `config.yaml`, the resolved configuration, and `flow.json`, how each step went. Knows the steps by name only, so
that neither torch nor transformers is ever loaded here, and a step's memory is given back when it ends.
"""

import json
import shlex

import mlflow
from mlflow import MlflowClient

from steps.flow.command_line import execute
from steps.flow.errors import StepError
from steps.flow.launch import StepResult, inputs_of, launch
from steps.flow.schema import INPUTS, STEPS, Config, Interface, to_yaml
from steps.flow.tracking import step_run


def run_chain(config: Config, overrides: list[str]) -> dict[str, StepResult]:
    """Run the configured steps in order, each with *overrides* and the runs it builds on; return how they went.

    Ends at the first that does not finish; `flow.json` is up to date after each.
    """
    chosen = [step for step in STEPS if step in config.steps]
    results: dict[str, StepResult] = {}
    for number, step in enumerate(chosen, start=1):
        _say(f"[{number}/{len(chosen)}] {step} ...")
        runs = {key: results[made].run_id for key, made in INPUTS.items() if made in results}
        parameters = {key: runs.get(key) or getattr(config, key) or "" for key in inputs_of(step)}
        results[step] = result = launch(step, {**parameters, "overrides": shlex.join(overrides)})
        mlflow.log_dict({"steps": [done.as_dict() for done in results.values()]}, "flow.json")
        _say(f"[{number}/{len(chosen)}] {step:<23} {result.status:<9} {result.seconds:6.1f} s")
        if result.status != "FINISHED":
            break
    return results


def summary(results: dict[str, StepResult], config: Config) -> str:
    """Return what a person wants to know at the end: the figures side by side, the model, and what to type next."""
    lines = []
    if evaluate := results.get("evaluate"):
        lines += [
            mlflow.artifacts.load_text(evaluate.outputs["summary"]),
            f"Report:      {evaluate.outputs['report']}",
        ]
    store = shlex.quote(mlflow.get_tracking_uri())
    following = [f"mlflow ui --backend-store-uri {store}"]
    if register := results.get("register"):
        model_uri = register.outputs["model_uri"]
        lines.append(f"Registered:  {model_uri}")
        header = "-H 'Content-Type: application/json'"
        following += [
            f"MLFLOW_TRACKING_URI={store} mlflow models serve -m {model_uri} --env-manager uv -p 5001",
            f"curl -s localhost:5001/invocations {header} -d {shlex.quote(example(config))}",
        ]
    return "\n".join([*lines, "", "Next:", *(f"  {line}" for line in following)])


def example(config: Config) -> str:
    """Return the body of a request that asks the registered model the configured question."""
    if config.build_onnx_wrapper.interface is Interface.prompt:
        return json.dumps({"dataframe_split": {"columns": ["prompt"], "data": [[config.question]]}}, ensure_ascii=False)
    return json.dumps({"messages": [{"role": "user", "content": config.question}]}, ensure_ascii=False)


def _say(line: str) -> None:
    print(line, flush=True)


def main(config: Config, overrides: list[str]) -> None:
    """Run the whole chain; raise StepError at the first step that does not finish."""
    with step_run("main", config):
        mlflow.log_text(to_yaml(config), "config.yaml")
        results = run_chain(config, overrides)
        if evaluate := results.get("evaluate"):
            # On the chain's own run too, so that MLflow's UI compares flows.
            mlflow.log_metrics(MlflowClient().get_run(evaluate.run_id).data.metrics)
        last = list(results.values())[-1]
        if last.status != "FINISHED":
            msg = (
                f"{last.step} ended {last.status} after {last.seconds:.0f} s: mend what it says above, and start again"
            )
            raise StepError(msg)
        _say("\n" + summary(results, config))


if __name__ == "__main__":
    execute("main", main)
