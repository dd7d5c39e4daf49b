"""monitor: reads the newest traces of a served version, holds them against its evaluation, and judges them by gates.

    mlflow run . -e monitor -P monitor.model=models:/tiny_phi3@champion

Writes metrics, `gates.json` and `report.html`. A gate that fails ends it with exit 1; with `monitor.rollback=true`, the
previous champion is champion again before. docs/guides/monitor.md is the guide.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from steps.config.schema import REFERENCE, Config
from steps.evaluation.gates import Verdict, overall, read_gates, write_gates
from steps.flow.entry import command
from steps.flow.runs import open_run
from steps.monitoring.figures import by_prompt_length, figures_of
from steps.monitoring.judging import SECTION, failed, judge_window, roll_back_from, unjudged
from steps.monitoring.page import Window, cell_of, write_page
from steps.monitoring.reask import examples_of, reask
from steps.monitoring.watched import Baseline, baseline_of, evaluation_of, version_at
from steps.monitoring.window import Request, read_window
from steps.records.artifacts import GATES, REPORT
from steps.records.errors import StepError
from steps.records.tags import VERDICT
from steps.records.traces import experiment_name


def main(config: Config, _overrides: list[str]) -> None:
    """Watch the version that *config* names. Raises StepError if a gate fails."""
    with open_run("monitor", config):
        watch(config)


def watch(config: Config) -> None:
    """Measure, judge, and log to the active run; roll back if that is asked for. Raises StepError if a gate fails."""
    options, version = config.monitor, version_at(config.monitor.model)
    name, number = version.name, str(version.version)
    evaluate = evaluation_of(version)
    baseline = baseline_of(evaluate, version.tags["wrapper"])
    requests = read_window(name, number, options.window_hours, options.limit)
    figures = figures_of(requests, baseline) | asked_again(config, requests, version, evaluate, baseline)
    by_length = by_prompt_length([each for each in requests if each.answered])
    gates = read_gates(options.gates, SECTION)
    verdicts = judge_window(figures, gates)
    log_figures(figures, by_length, version.model_id)
    print_verdicts(f"{name} version {number}: {len(requests)} requests", verdicts, figures)
    if left_out := unjudged(figures, gates):
        print(f"  not judged, because no request shows it: {', '.join(left_out)}", flush=True)
    outcome, trouble = follow(config, name, number, verdicts)
    provenance = {
        "Version": f"models:/{name}/{number}",
        "Traces": f"experiment {experiment_name(name)!r}, tag version={number}",
        "Evaluation": f"run {evaluate.info.run_id}, {len(baseline.answers)} questions",
        "Not judged": ", ".join(left_out) or "none",
    }
    window = Window(
        f"{name} version {number}", requests, baseline, figures, by_length, verdicts, provenance, outcome or trouble
    )
    log_results(window)
    mlflow.set_tags({VERDICT: overall(verdicts), "version": number, "model_name": name})
    if broken := failed(verdicts):
        reasons = "; ".join(each.reason for each in broken)
        run = mlflow.active_run()
        assert run is not None
        then = f"; {outcome or trouble}" if outcome or trouble else ""
        msg = f"{reasons}{then}; see {REPORT} of run {run.info.run_id}"
        raise StepError(msg)


def asked_again(
    config: Config, requests: Sequence[Request], version: ModelVersion, evaluate: Run, baseline: Baseline
) -> dict[str, float]:
    """Return the figures of `monitor.reask` live prompts; none, with a line that says why, if there are none to ask."""
    if not config.monitor.reask:
        return {}
    if version.tags["wrapper"] == REFERENCE:
        print("monitor.reask: this version is the reference itself, so nothing is asked again", file=sys.stderr)
        return {}
    examples = examples_of(requests, config.monitor.reask, baseline.max_tokens)
    if not examples:
        least = f"asked for at least {baseline.max_tokens} tokens, as evaluate did"
        line = f"monitor.reask: no chat with texts {least}: serve with serve.trace_text=true"
        print(line, file=sys.stderr, flush=True)
        return {}
    return reask(examples, version, evaluate, baseline, config.evaluate, config.seed)


def follow(config: Config, name: str, number: str, verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """Roll back from version *number* of *name* if asked for; return what was done, and why it could not be done."""
    if not config.monitor.rollback or not failed(verdicts):
        return "", ""
    try:
        change = roll_back_from(name, number, verdicts)
    except StepError as error:
        return "", str(error)
    if change is None:
        return "", "not rolled back: clients or load may be the cause, not the version"
    mlflow.set_tags({"rollback.version": change.version, "rollback.replaced": number})
    return f"version {change.version} of {name} is champion again", ""


def log_figures(
    figures: Mapping[str, float], by_length: Mapping[int, Mapping[str, float]], model_id: str | None
) -> None:
    """Log *figures* as metrics of the run and of the logged model; those by length of the prompt as a series."""
    mlflow.log_metrics(dict(figures), model_id=model_id or None)
    for most, found in by_length.items():
        mlflow.log_metrics(dict(found), step=most)


def print_verdicts(title: str, verdicts: Sequence[Verdict], figures: Mapping[str, float]) -> None:
    """Print a line for each gate."""
    print(title)
    for each in verdicts:
        cell = cell_of(figures, each.metric)
        print(f"  {each.verdict:<13} {each.gate:<16} {each.metric:<28} {cell or 'there is none'}", flush=True)


def log_results(window: Window) -> None:
    """Log gates.json and the report."""
    with tempfile.TemporaryDirectory() as work:
        write_gates(Path(work) / GATES, window.verdicts)
        write_page(Path(work) / REPORT, window)
        mlflow.log_artifacts(work)


if __name__ == "__main__":
    command("monitor", main)
