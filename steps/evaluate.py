"""evaluate: reads the two logged models; writes metrics, `predictions.jsonl`, `gates.json`, plots and `report.html`.

It loads both as a user would, asks them the same questions, scores the answers, and judges the figures by
`evaluate.gates`. The run fails, and with it the chain, when a gate does not pass.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from steps.config.schema import BUILD, CANDIDATES, FIDELITY, REFERENCE, Config, Evaluate, project_path
from steps.evaluation.cost import by_prompt_length
from steps.evaluation.gates import PASSED, Verdict, judge, overall, read_gates
from steps.evaluation.metrics import Metrics, flatten, measure
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example, read_task
from steps.extras.lm_eval import check_harness, measure_harness
from steps.extras.lm_eval_metrics import Results as Harness
from steps.extras.lm_eval_metrics import harness_metrics, write_harness
from steps.logged_models.logged_model import checked_model
from steps.logged_models.process import candidate
from steps.measurement.measure import Measurements, measure_candidates
from steps.records.artifacts import GATES, LADDER, REPORT, SUMMARY, TABLE
from steps.records.errors import StepError, first_line
from steps.records.files import hash_file, hash_text
from steps.records.step import Inputs, Outputs
from steps.records.tags import DIGEST, GATES_DIGEST, RECIPE, VERDICT
from steps.report.files import write_results
from steps.report.ladder import Ladder
from steps.report.results import Results


def run(config: Config, inputs: Inputs) -> Outputs:
    """Measure the two models of *inputs* against each other, and judge them. Raises StepError unless all gates pass."""
    options = config.evaluate
    gates = read_gates(options.gates)
    examples = read_task(project_path(options.task), options.scorer)[: options.limit]
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {name: inputs[step] for name, step in CANDIDATES.items()}
        models = {name: stack.enter_context(checked_model(built)) for name, built in runs.items()}
        models |= {name: (uri, fetched(uri, work / name)) for name, uri in options.candidates.items()}
        # They load side by side.
        loading = {name: stack.enter_context(candidate(name, folder)) for name, (_uri, folder) in models.items()}
        check_harness(options.harness)
        found = measure_candidates(loading, REFERENCE, examples, options)
        harness = measure_harness(loading, options.harness, config.seed)
        predictions = score(examples, found.answers)
        metrics = figures_of(predictions, found, harness, config.seed)
        results = Results(
            title=f"{config.model.name}: {' and '.join(list(models)[1:])} measured against {REFERENCE}",
            reference=REFERENCE,
            predictions=predictions,
            metrics=metrics,
            verdicts=judge(flatten(metrics), gates),
            fidelity={name: own.fidelity for name, own in found.measured.items() if own.fidelity},
            timings=[timing for own in found.measured.values() for timing in own.timings],
            method=method(options, found),
            provenance=provenance(runs, models, config),
            ladder=ladder_of(runs[BUILD]),
        )
        log_measurements(found, metrics, {name: model_id(folder) for name, (_uri, folder) in models.items()})
        log_data(examples, predictions, options)
        gates_digest = log_results(results, harness, work / "results")
    mlflow.set_tags({VERDICT: overall(results.verdicts), GATES_DIGEST: gates_digest})
    return hand_over(results.verdicts, judgement(gates_digest, runs), chosen=results.ladder is not None)


def figures_of(
    predictions: Sequence[Prediction], found: Measurements, harness: Mapping[str, Harness], seed: int
) -> Metrics:
    """Return every figure of every candidate, the harness's included."""
    metrics = measure(predictions, found.measured, REFERENCE, seed)
    for name, figures in harness_metrics(harness, REFERENCE, seed).items():
        metrics[name] |= figures
    return metrics


def model_id(folder: Path) -> str | None:
    """Return MLflow's id of the logged model in *folder*."""
    found: str | None = Model.load(str(folder)).model_id
    return found


def fetched(uri: str, folder: Path) -> Path:
    """Copy the model at *uri* to *folder*; return its folder. Raises StepError when there is none."""
    folder.mkdir()
    try:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        msg = f"evaluate.candidates names {uri}, which cannot be fetched ({first_line(error)}): check the URI"
        raise StepError(msg) from error
    if not (model / MLMODEL_FILE_NAME).is_file():
        msg = f"evaluate.candidates names {uri}, which holds no {MLMODEL_FILE_NAME}: name a model that MLflow logged"
        raise StepError(msg)
    return model


def log_measurements(found: Measurements, metrics: Metrics, ids: Mapping[str, str | None]) -> None:
    """Log *metrics*, and the series over prompt lengths, each linked to the logged model of its candidate.

    A value that is not finite is logged for the run alone: for a logged model MLflow shows NaN as 0, and infinity as a
    number.
    """
    mlflow.set_tags({f"threads.{name}": str(threads) for name, threads in found.threads.items()})
    mlflow.set_tags({f"dtype.{name}": dtype for name, dtype in found.dtypes.items()})
    for name, own_id in ids.items():
        own = flatten({name: metrics[name]})
        finite = {metric: value for metric, value in own.items() if math.isfinite(value)}
        mlflow.log_metrics(finite, model_id=own_id)
        mlflow.log_metrics({metric: value for metric, value in own.items() if metric not in finite})
        for tokens, medians in by_prompt_length(found.of(name).timings).items():
            mlflow.log_metrics(flatten({name: medians}), step=tokens, model_id=own_id)


def log_data(examples: Sequence[Example], predictions: Sequence[Prediction], options: Evaluate) -> None:
    """Log the questions as the run's input, and the answers as a table, where MLflow's UI shows both."""
    questions = pd.DataFrame(
        {
            "id": [example.id for example in examples],
            "messages": [json.dumps(example.messages, ensure_ascii=False) for example in examples],
            "reference": [example.reference for example in examples],
        }
    )
    path = project_path(options.task)
    dataset = from_pandas(
        questions,
        source=get_dataset_source_from_json(json.dumps({"uri": str(path)}), "local"),
        name=path.stem,
        targets="reference",
    )
    mlflow.log_input(dataset, context="evaluation")
    rows = [_table_row(prediction) for prediction in predictions]
    mlflow.log_table(pd.DataFrame(rows), TABLE)


def _table_row(prediction: Prediction) -> dict[str, object]:
    """Return *prediction* as a row of the table of answers, with four columns for each candidate."""
    example = prediction.example
    row: dict[str, object] = {
        "id": example.id,
        "question": example.messages[-1]["content"],
        "reference": example.reference,
    }
    for name, answer in prediction.answers.items():
        row[f"{name}.answer"], row[f"{name}.right"] = answer.text, prediction.right[name]
        row[f"{name}.seconds"], row[f"{name}.error"] = answer.seconds, answer.error
    return row


def log_results(results: Results, harness: Mapping[str, Harness], folder: Path) -> str:
    """Write *results*, and what the *harness* found, to *folder*, and log it; return the hash of gates.json."""
    folder.mkdir()
    write_results(folder, results)
    write_harness(folder / "harness", harness)
    mlflow.log_artifacts(str(folder))
    return hash_file(folder / GATES)


def judgement(gates_digest: str, runs: Mapping[str, Run]) -> str:
    """Return the hash of what was judged and how: two different builds can have the same gates.json."""
    return hash_text("\n".join([gates_digest, *(f"{name} {run.data.tags[DIGEST]}" for name, run in runs.items())]))


def ladder_of(built: Run) -> Ladder | None:
    """Return the recipes that onnx=auto tried for the build of the run *built*; None where a recipe was named."""
    if RECIPE not in built.data.tags:
        return None
    found: Ladder = mlflow.artifacts.load_dict(f"{built.info.artifact_uri}/{LADDER}")
    return found


def hand_over(verdicts: Sequence[Verdict], digest: str, *, chosen: bool) -> Outputs:
    """Return the files of the active run. Raises StepError, with every reason, unless all gates passed.

    *chosen*: whether onnx=auto chose the build. If not, the error proposes it for a build that is not close enough.
    """
    run_id = active_run().info.run_id
    if overall(verdicts) != PASSED:
        reasons = [verdict.reason for verdict in verdicts if verdict.verdict != PASSED]
        far = any(each.verdict != PASSED and each.metric.startswith(FIDELITY) for each in verdicts) and not chosen
        remedy = "; try -P onnx=auto, which takes the smallest recipe that keeps the fidelity gates" if far else ""
        msg = f"{'; '.join(reasons) or 'there are no gates'}{remedy}; see {REPORT} of run {run_id}"
        raise StepError(msg)
    files = {"gates": GATES, "report": REPORT, "summary": SUMMARY}
    return Outputs({name: f"runs:/{run_id}/{file}" for name, file in files.items()}, digest)


def method(options: Evaluate, found: Measurements) -> dict[str, str]:
    """Return how it was measured, for the report."""
    fidelity, cost = options.fidelity, options.cost
    chosen = any(answer.likelihoods for answer in found.answers[REFERENCE])
    return {
        "Task": options.task,
        "Examples": str(len(found.answers[REFERENCE])),
        "Scorer": options.scorer or "the one that the task names for each example",
        "Longest answer": f"{options.max_tokens} tokens, greedy",
        "Order": f"each candidate in a process of its own, in turns; the first {options.timed_examples} questions one "
        f"at a time, after a warm-up, the rest in batches{'; multiple choice last, one at a time' if chosen else ''}",
        "Probabilities": f"of the answers to {fidelity.questions or 'all'} questions"
        f"{f', and of {fidelity.text}' if fidelity.text else ''}, "
        f"at most {fidelity.context} tokens at a time, on the token ids of {REFERENCE}",
        "Times": f"{cost.repeats} calls for each of {cost.prompt_lengths} prompt tokens by {cost.batches} prompts, "
        f"at most {cost.new_tokens} new tokens; to the first token: a call for one token",
        "Threads": ", ".join(f"{name} {count}" for name, count in found.threads.items()),
        "Computed in": ", ".join(f"{name} {dtype}" for name, dtype in found.dtypes.items()) or "unknown",
        "Failures": "; ".join(found.failures) or "none",
    }


def provenance(runs: Mapping[str, Run], models: Mapping[str, tuple[str, Path]], config: Config) -> dict[str, str]:
    """Return what was measured, for the report: models, code, machine, versions."""
    tags = active_run().data.tags
    packages = {name.removeprefix("version."): value for name, value in tags.items() if name.startswith("version.")}
    return {
        **{
            f"Model of {name}": f"{uri} (run {runs[name].info.run_id})" if name in runs else uri
            for name, (uri, _folder) in models.items()
        },
        "Code": f"commit {tags['code.commit']}, uncommitted changes: {tags['code.dirty']}",
        "Machine": f"{tags['platform']}, {len(os.sched_getaffinity(0))} CPUs, Python {tags['python']}",
        "Packages": ", ".join(f"{name} {value}" for name, value in packages.items()),
        "Seed": str(config.seed),
    }


def active_run() -> Run:
    """Return the run of this step, with the tags that it has in the store."""
    run = mlflow.active_run()
    assert run is not None
    return mlflow.get_run(run.info.run_id)


if __name__ == "__main__":
    from steps.flow.entry import execute

    execute("evaluate")
