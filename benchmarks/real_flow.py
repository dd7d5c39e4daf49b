"""The whole flow on a real model with the defaults: its seconds, and what the chosen build keeps, beside the goals.

    python -m benchmarks.real_flow [--dithered] [--questions 300] [--json FILE]

Makes SmolLM2-135M-Instruct in build/ as `benchmarks.smollm2` does, and gives it to `mlflow run .` with a store of its
own. The questions are the project's two tasks, one after the other. Run it on a machine with nothing else to do.
"""

import argparse
import json
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.flow import ROOT, timed
from benchmarks.report import Goal, tell
from benchmarks.smollm2 import make_smollm2
from steps.config.schema import STEPS

TASKS = ("capitals", "capitals_choice")


def write_questions(most: int, path: Path) -> None:
    """Write the first *most* questions of the tasks to *path*, under ids that differ."""
    lines = []
    for task in TASKS:
        for line in (ROOT / "data" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines():
            question = json.loads(line)
            lines.append(json.dumps(question | {"id": f"{task}-{question['id']}"}, ensure_ascii=False))
    path.write_text("\n".join(lines[:most]) + "\n", encoding="utf-8")


def newest(store: str, step: str) -> Run:
    """Return the newest run of *step* in *store*."""
    found: Run = MlflowClient(store).search_runs(["0"], f"tags.step = '{step}'")[0]
    return found


def seconds_of(run: Run) -> float:
    """Return the wall seconds between the start of *run* and its end."""
    return float(run.info.end_time - run.info.start_time) / 1000


def goals(flow: float, evaluate: Run, share: float) -> list[Goal]:
    """Return what was wanted of the *flow*'s seconds, *evaluate*'s figures and the build's *share* of the bytes."""
    figures = evaluate.data.metrics
    return [
        Goal("the flow, seconds", flow, high=480),
        Goal("evaluate, seconds", seconds_of(evaluate), high=240),
        Goal("the build, share of the bf16 checkpoint's bytes", share, high=0.55),
        Goal("perplexity ratio", figures["onnx.fidelity.perplexity_ratio"], high=1.02),
        Goal("KL divergence, nats", figures["onnx.fidelity.kl_mean"], high=0.02),
        Goal("right answers lost, share", -figures["onnx.task.difference"], high=0.02),
    ]


def main() -> None:
    """Run the flow once, and print its steps, its intervals and the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dithered", action="store_true", help="the variant whose weights lie off the grid of 4 bits")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name = "smollm2_dithered" if options.dithered else "smollm2"
    checkpoint = make_smollm2(ROOT / "build" / name, dithered=options.dithered)
    with tempfile.TemporaryDirectory() as work:
        folder, store = Path(work), f"sqlite:///{work}/store.db"
        write_questions(options.questions, folder / "questions.jsonl")
        given = {"model": "local", "model.path": checkpoint, "model.name": name, "register.name": name}
        parameters = {**given, "evaluate.task": folder / "questions.jsonl"}
        flow = timed(
            store, folder, ROOT, *(word for key, value in parameters.items() for word in ("-P", f"{key}={value}"))
        )
        runs = {step: newest(store, step) for step in STEPS}
        uri = f"{runs['build_onnx_wrapper'].info.artifact_uri}/ladder.json"
        ladder = json.loads(Path(uri.removeprefix("file://")).read_text(encoding="utf-8"))
    chosen = next(rung for rung in ladder["rungs"] if rung["recipe"]["name"] == ladder["chosen"])
    figures = runs["evaluate"].data.metrics
    intervals = {
        each: {part: figures[f"{each}{part}"] for part in ("", "_low", "_high")}
        for each in (
            "onnx.fidelity.perplexity_ratio",
            "onnx.fidelity.kl_mean",
            "onnx.fidelity.same_top",
            "pipeline.task.accuracy",
            "onnx.task.accuracy",
            "onnx.task.difference",
        )
    }
    print(f"{name}, {options.questions} questions: onnx=auto chose {ladder['chosen']}")
    tell({step: {"seconds": seconds_of(run)} for step, run in runs.items()}, [], None)
    tell(intervals, goals(flow, runs["evaluate"], chosen["figures"]["cost.size_ratio"]), options.json)


if __name__ == "__main__":
    main()
