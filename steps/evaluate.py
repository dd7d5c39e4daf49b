"""evaluate: reads the two logged models; writes metrics, `predictions.jsonl`, `gates.json`, plots and `report.html`.

Both are loaded as a user would load them, asked the same questions, scored, and judged by `evaluate.gates`. The run
fails, and with it the chain, when a gate does not pass.
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

from steps.config.schema import BUILD, CANDIDATES, FIDELITY, REFERENCE, Config, Evaluate, project_path
from steps.evaluation.gates import PASSED, Verdict, judge, overall, read_gates
from steps.evaluation.latency import by_prompt_length
from steps.evaluation.metrics import measure
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example, read_examples
from steps.extras.lm_eval import check_harness, measure_harness
from steps.extras.lm_eval_metrics import harness_metrics, write_harness
from steps.logged_models.logged_model import checked_model
from steps.logged_models.process import candidate
from steps.measurement.measure import Measurements, measure_candidates
from steps.records.artifacts import GATES, LADDER, REPORT, SUMMARY, TABLE
from steps.records.errors import StepError
from steps.records.files import hash_file, hash_text
from steps.records.step import Inputs, Outputs
from steps.records.tags import DIGEST, GATES_DIGEST, RECIPE, VERDICT
from steps.report.ladder import Ladder
from steps.report.results import write_results


def run(config: Config, inputs: Inputs) -> Outputs:
    """Measure the two models of *inputs* against each other, and judge them. Raises StepError unless all gates pass."""
    options = config.evaluate
    gates = read_gates(options.gates)
    examples = read_examples(project_path(options.task), options.limit, options.scorer)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {name: inputs[step] for name, step in CANDIDATES.items()}
        models = {name: stack.enter_context(checked_model(built)) for name, built in runs.items()}
        for name, uri in options.candidates.items():
            models[name] = uri, fetched(uri, work / name)
        # They load side by side.
        loading = {name: stack.enter_context(candidate(name, folder)) for name, (_uri, folder) in models.items()}
        check_harness(options.harness)
        found = measure_candidates(loading, REFERENCE, examples, options, config.seed)
        harness = measure_harness(loading, options.harness, config.seed)
        predictions = score(examples, found.answers)
        also = found.figures | harness_metrics(harness, REFERENCE, config.seed)
        metrics = measure(predictions, REFERENCE, config.seed, also=also)
        ids = {name: Model.load(str(folder)).model_id for name, (_uri, folder) in models.items()}
        log_measurements(found, metrics, ids)
        log_data(examples, predictions, options)
        verdicts = judge(metrics, gates)
        results = work / "results"
        results.mkdir()
        told = provenance(runs, models, config)
        write_results(results, predictions, metrics, verdicts, found, config, told, ladder_of(runs[BUILD]))
        write_harness(results / "harness", harness)
        mlflow.log_artifacts(str(results))
        gates_digest = hash_file(results / GATES)
    mlflow.set_tags({VERDICT: overall(verdicts), GATES_DIGEST: gates_digest})
    return hand_over(verdicts, judgement(gates_digest, runs), chosen=RECIPE in runs[BUILD].data.tags)


def fetched(uri: str, folder: Path) -> Path:
    """Return the folder of the model at *uri*, which is copied to *folder*. Raises StepError when there is none."""
    folder.mkdir()
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        fact = str(error).splitlines()[0]
        msg = f"evaluate.candidates names {uri}, which cannot be had: {fact}"
        raise StepError(msg) from error


def log_measurements(found: Measurements, metrics: Mapping[str, float], model_ids: Mapping[str, str | None]) -> None:
    """Log *metrics*, and the series over prompt lengths, each linked to the logged model of its candidate.

    What is not finite is the run's alone: of a logged model MLflow would show NaN as 0, and infinity as a number.
    """
    mlflow.set_tags({f"threads.{name}": str(threads) for name, threads in found.threads.items()})
    for name, model_id in model_ids.items():
        own = {metric: value for metric, value in metrics.items() if metric.startswith(f"{name}.")}
        finite = {metric: value for metric, value in own.items() if math.isfinite(value)}
        mlflow.log_metrics(finite, model_id=model_id)
        mlflow.log_metrics({metric: value for metric, value in own.items() if metric not in finite})
        for tokens, values in by_prompt_length(
            [timing for timing in found.timings if timing.candidate == name]
        ).items():
            mlflow.log_metrics(values, step=tokens, model_id=model_id)


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


def judgement(gates_digest: str, runs: Mapping[str, Run]) -> str:
    """Return the digest of what was judged and how: two builds can have the same gates.json, and are not one."""
    return hash_text("\n".join([gates_digest, *(f"{name} {run.data.tags[DIGEST]}" for name, run in runs.items())]))


def ladder_of(built: Run) -> Ladder | None:
    """Return what onnx=auto tried before it chose the build of the run *built*; None where a recipe was named."""
    if RECIPE not in built.data.tags:
        return None
    found: Ladder = mlflow.artifacts.load_dict(f"{built.info.artifact_uri}/{LADDER}")
    return found


def hand_over(verdicts: Sequence[Verdict], digest: str, *, chosen: bool) -> Outputs:
    """Return the files of the active run. Raises StepError, with every reason, unless all gates passed.

    *chosen*: whether onnx=auto chose the build; otherwise it is what to try where the build is too far off.
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


def provenance(runs: Mapping[str, Run], models: Mapping[str, tuple[str, Path]], config: Config) -> dict[str, str]:
    """Return what the report says of where its figures come from."""
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
