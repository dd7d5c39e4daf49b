"""evaluate: reads the two logged models; writes metrics, `predictions.jsonl`, `gates.json`, plots and `report.html`.

Both are loaded as a user would load them, asked the same questions, scored, and judged by `evaluate.gates`. The run
fails, and with it the chain, when a gate does not pass.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.pyfunc import PyFuncModel

from steps.evaluation import plots
from steps.evaluation.asking import Asked, Predict, ask, progress
from steps.evaluation.gates import PASSED, Verdict, judge, overall, write_gates
from steps.evaluation.metrics import measure
from steps.evaluation.predictions import Prediction, score, write_predictions
from steps.evaluation.report import metric_rows, write_report
from steps.evaluation.scoring import check_reference
from steps.evaluation.tasks import Example, read_task
from steps.flow.command_line import execute
from steps.flow.errors import StepError
from steps.flow.files import files_below, hash_file
from steps.flow.fingerprint import DIGEST
from steps.flow.gates import configured_gates
from steps.flow.logged_model import checked_model
from steps.flow.provenance import provenance_tags
from steps.flow.schema import CANDIDATES, REFERENCE, Config, Evaluate, project_path
from steps.flow.tracking import set_output, step_run

REPORT, GATES, SUMMARY, SCORES = "report.html", "gates.json", "summary.txt", "scores.md"

IN_SUMMARY = (
    "task.accuracy",
    "task.agreement",
    "cost.answers_per_second",
    "cost.first_answer_seconds",
    "cost.size_bytes",
)
"""The metrics that the terminal shows; the report has all."""


@dataclass(frozen=True)
class Measured:
    """A candidate's answers, and what loading it cost: seconds, and bytes on disk."""

    asked: Asked
    load_seconds: float
    size_bytes: int


def read_examples(options: Evaluate) -> list[Example]:
    """Return the questions to ask. Raises StepError with file and line for what is not one."""
    try:
        examples = read_task(project_path(options.task))[: options.limit]
        if options.scorer is not None:
            examples = [replace(example, scorer=options.scorer) for example in examples]
            for example in examples:
                check_reference(example.scorer, example.reference)
    except ValueError as error:
        raise StepError(str(error)) from error
    return examples


def measure_candidate(name: str, folder: Path, examples: list[Example], max_tokens: int) -> Measured:
    """Load the model in *folder* and ask it *examples*; the time to a first answer includes nothing of the loading."""
    size = sum(path.stat().st_size for path in files_below(folder))
    started = time.perf_counter()
    predict = chat_with(mlflow.pyfunc.load_model(str(folder)))
    load_seconds = time.perf_counter() - started
    return Measured(ask(predict, examples, {"max_tokens": max_tokens}, on_answer=progress(name)), load_seconds, size)


def chat_with(model: PyFuncModel) -> Predict:
    """Return *model* as a function from a Chat Completions request to its response, whichever interface it has."""

    def ask_chat(request: dict[str, Any]) -> Mapping[str, Any]:
        responses: Any = model.predict(request)
        response: Mapping[str, Any] = responses[0]
        return response

    def ask_prompt(request: dict[str, Any]) -> Mapping[str, Any]:
        prompt = model.unwrap_python_model().text.render(request.pop("messages"))
        texts: Any = model.predict({"prompt": [prompt]}, params=request)
        return {"choices": [{"message": {"role": "assistant", "content": texts[0]}}]}

    return ask_prompt if model.metadata.get_input_schema().input_names() == ["prompt"] else ask_chat


def write_results(
    folder: Path,
    predictions: list[Prediction],
    metrics: dict[str, float],
    verdicts: list[Verdict],
    config: Config,
    provenance: dict[str, str],
) -> None:
    """Write predictions, gates, plots, report and summary to *folder*."""
    figures = plots.draw(predictions, metrics)
    write_predictions(folder / "predictions.jsonl", predictions)
    write_gates(folder / GATES, verdicts)
    (folder / "plots").mkdir()
    plots.save(figures, folder / "plots")
    write_report(
        folder / REPORT,
        title=f"{config.model.name}: onnx measured against pipeline",
        predictions=predictions,
        metrics=metrics,
        verdicts=verdicts,
        figures=figures,
        reference=REFERENCE,
        measured={
            "Task": config.evaluate.task,
            "Examples": len(predictions),
            "Scorer": config.evaluate.scorer or "as the task says of each example",
            "Longest answer": f"{config.evaluate.max_tokens} tokens, greedy",
            "Order": "one candidate after the other in one process, one question at a time; one warm-up not counted",
        },
        provenance=provenance,
    )
    (folder / SUMMARY).write_text(summary(metrics), encoding="utf-8")
    (folder / SCORES).write_text(scores(metrics), encoding="utf-8")


def summary(metrics: Mapping[str, float]) -> str:
    """Return the metrics that matter most as a table of plain text, candidates side by side."""
    lines = [f"{'':<34}" + "".join(f"{name:>14}" for name in CANDIDATES)]
    for row in metric_rows(metrics, list(CANDIDATES)):
        if row.name in IN_SUMMARY:
            lines.append(f"{row.meaning.label:<34}" + "".join(f"{cell.text if cell else '':>14}" for cell in row.cells))
    return "\n".join(lines) + "\n"


def scores(metrics: Mapping[str, float]) -> str:
    """Return all metrics as a table in Markdown, candidates side by side, for the model cards of what is registered."""
    lines = [f"| | {' | '.join(CANDIDATES)} |", "|---|" + "---|" * len(CANDIDATES)]
    for row in metric_rows(metrics, list(CANDIDATES)):
        cells = [
            f"{cell.text} ({cell.interval})" if cell and cell.interval else cell.text if cell else ""
            for cell in row.cells
        ]
        lines.append(f"| {row.meaning.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: Config, _overrides: list[str]) -> None:
    """Measure the models of `pipeline_run_id` and `onnx_run_id` against each other, and judge them."""
    gates = configured_gates(config)
    with step_run("evaluate", config) as step, ExitStack() as stack:
        runs = {name: step.inputs[key] for name, key in CANDIDATES.items()}
        models = {name: stack.enter_context(checked_model(built)) for name, built in runs.items()}
        examples = read_examples(config.evaluate)
        measured = {
            name: measure_candidate(name, folder, examples, config.evaluate.max_tokens)
            for name, (_uri, folder) in models.items()
        }
        predictions = score(examples, {name: result.asked.answers for name, result in measured.items()})
        metrics = measure(predictions, REFERENCE, config.seed, also=loading_costs(measured))
        mlflow.log_metrics(metrics)
        verdicts = judge(metrics, gates)
        mlflow.set_tag("verdict", overall(verdicts))
        with tempfile.TemporaryDirectory() as work:
            write_results(Path(work), predictions, metrics, verdicts, config, provenance(runs, models, config))
            mlflow.log_artifacts(work)
            mlflow.set_tag(DIGEST, hash_file(Path(work) / GATES))
        run_id = step.run.info.run_id
        if overall(verdicts) != PASSED:
            reasons = [verdict.reason for verdict in verdicts if verdict.verdict != PASSED]
            msg = f"{'; '.join(reasons) or 'there are no gates'}; see {REPORT} of run {run_id}"
            raise StepError(msg)
        for name, file in {"gates": GATES, "report": REPORT, "summary": SUMMARY}.items():
            set_output(name, f"runs:/{run_id}/{file}")


def loading_costs(measured: Mapping[str, Measured]) -> dict[str, float]:
    """Return, by full metric name, what is measured outside the answers."""
    return {
        f"{name}.cost.{figure}": value
        for name, result in measured.items()
        for figure, value in {
            "load_seconds": result.load_seconds,
            "first_answer_seconds": result.asked.first_answer_seconds,
            "size_bytes": float(result.size_bytes),
        }.items()
    }


def provenance(runs: Mapping[str, Run], models: Mapping[str, tuple[str, Path]], config: Config) -> dict[str, str]:
    """Return what the report says of where its figures come from."""
    tags = provenance_tags(config.seed)
    packages = {name.removeprefix("version."): value for name, value in tags.items() if name.startswith("version.")}
    return {
        **{f"Model of {name}": f"{models[name][0]} (run {built.info.run_id})" for name, built in runs.items()},
        "Code": f"commit {tags['code.commit']}, uncommitted changes: {tags['code.dirty']}",
        "Machine": f"{tags['platform']}, {len(os.sched_getaffinity(0))} CPUs, Python {tags['python']}",
        "Packages": ", ".join(f"{name} {value}" for name, value in packages.items()),
        "Seed": str(config.seed),
    }


if __name__ == "__main__":
    execute("evaluate", main)
