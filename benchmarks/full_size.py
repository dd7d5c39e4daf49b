"""The whole flow at Phi-3-mini's size: time, memory and disk of each step, and decode speed against memory bandwidth.

    python -m benchmarks.full_size --work /somewhere/large [--clean] [--layers 2 --hidden 512 --intermediate 1024]

Makes a checkpoint of random weights in the true dimensions (7.6 GB), shard by shard, takes it through the flow as
`mlflow run` does, and prints two Markdown tables. Needs 16 GB of memory, 45 GB of disk, and a machine with nothing else
to do. KEY=VALUE arguments go to the flow. Everything is in the folder --work; --clean removes it in the end.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import psutil
from mlflow import MlflowClient

from benchmarks.random_phi3 import VOCABULARY, Size, add_size_options, chosen_size, make_checkpoint
from steps.config.command_line import compose_config
from steps.config.schema import STEPS
from steps.logged_models.logged_model import logged_folder

ROOT = Path(__file__).resolve().parent.parent
PHI3_MINI = Size(layers=32, hidden=3072, intermediate=8192, heads=32)
EVERY = 0.2
"""Seconds between two looks at the processes."""

ROOM = 6
"""Free disk that is asked for, in sizes of the checkpoint: itself, copies, and what the builder writes meanwhile."""

DECODED = 32
"""Tokens over which decoding is timed."""


@dataclass
class Usage:
    """What the processes of one step used, in bytes.

    `resident`: the largest sum of their resident memory; `high`: the largest of one of them, as the kernel kept it;
    `written`: by process, what it wrote; `disk`: the most that the disk held beyond what it held in the beginning.
    """

    resident: int = 0
    high: int = 0
    disk: int = 0
    written: dict[int, int] = field(default_factory=dict)


def watch(flow: "subprocess.Popen[bytes]", folder: Path) -> dict[str, Usage]:
    """Return what each step of *flow* uses until it ends; *folder* is on the disk that is looked at."""
    usages: dict[str, Usage] = defaultdict(Usage)
    before = shutil.disk_usage(folder).used
    while flow.poll() is None:
        for step, processes in steps_below(flow.pid).items():
            usage, resident = usages[step], 0
            for process in processes:
                try:
                    resident += process.memory_info().rss
                    usage.written[process.pid] = process.io_counters().write_bytes
                    usage.high = max(usage.high, high_water(process.pid))
                except (psutil.Error, OSError):
                    continue  # it has just ended
            usage.resident = max(usage.resident, resident)
            usage.disk = max(usage.disk, shutil.disk_usage(folder).used - before)
        time.sleep(EVERY)
    return usages


def steps_below(root: int) -> dict[str, list[psutil.Process]]:
    """Return the processes of each step that runs below the process *root*."""
    found: dict[str, list[psutil.Process]] = {}
    try:
        for process in psutil.Process(root).children(recursive=True):
            words = process.cmdline()
            if words[1:3] == ["-m", "steps"] and words[3] in STEPS:
                found[words[3]] = [process, *process.children(recursive=True)]
    except psutil.Error:
        return found
    return found


def high_water(pid: int) -> int:
    """Return the most memory that the process *pid* has had resident, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    # A process that has ended and was not waited for yet has no such line.
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def run_flow(work: Path, parameters: Iterable[str]) -> dict[str, Usage]:
    """Run the flow on the checkpoint in *work*, and return what each step used; ends the program if it fails."""
    chosen = [
        "model=local",
        f"model.path={work / 'checkpoint'}",
        "model.name=full_size",
        "onnx=int4_cpu",
        "evaluate.limit=3",
        "evaluate.max_tokens=8",
        # At this size bf16 PyTorch takes a minute for a question: one call of each kind, where the default makes 64.
        "evaluate.cost.prompt_lengths=[32]",
        "evaluate.cost.batches=[1]",
        "evaluate.cost.new_tokens=4",
        "evaluate.cost.repeats=1",
        "evaluate.contract_examples=1",
        "build_pipeline_wrapper.max_new_tokens=8",
        "build_onnx_wrapper.max_tokens=8",
        *parameters,
    ]
    gates = compose_config(chosen).evaluate.gates
    # Weights that know nothing answer wrong, and close to each other's by chance alone.
    lenient = [f"~evaluate.gates.{name}" for name, gate in gates.items() if "integrity" not in gate["metric"]]
    chosen.append(f"overrides={' '.join(lenient)}")
    command = ["mlflow", "run", str(ROOT), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (work / "tmp").mkdir()
    environment = os.environ | {"PATH": path, "TMPDIR": str(work / "tmp")}
    words = [word for each in chosen for word in ("-P", each)]
    with (work / "flow.log").open("w") as log:
        flow = subprocess.Popen([*command, *words], cwd=work, env=environment, stdout=log, stderr=log)
        try:
            usages = watch(flow, work)
        finally:
            flow.terminate()
    if flow.returncode != 0:
        sys.exit(f"the flow failed: see {work / 'flow.log'}")
    return usages


def bandwidth() -> float:
    """Return how many bytes a second this process reads from memory: the best of ten sums over 2 GB."""
    import torch

    numbers = torch.ones(2**29, dtype=torch.float32)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - started)
    return numbers.nbytes / best


def decode_speed(model_uri: str) -> float:
    """Return the tokens a second of a single answer of the model at *model_uri*, without the time for its prompt."""
    with logged_folder(model_uri) as folder:
        model = mlflow.pyfunc.load_model(str(folder))

    def answer(max_tokens: int) -> tuple[float, int]:
        request = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}], "max_tokens": max_tokens}
        started = time.perf_counter()
        response = model.predict(request)[0]
        return time.perf_counter() - started, response["usage"]["completion_tokens"]

    answer(2)
    short, one = answer(1)
    long, many = answer(1 + DECODED)
    return (many - one) / (long - short)


def size_of(paths: Iterable[Path]) -> int:
    """Return the bytes of the files among *paths*."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def gigabytes(count: float) -> str:
    """Return *count* bytes in GB, as text."""
    return f"{count / 1e9:.2f}"


def steps_table(usages: dict[str, Usage]) -> str:
    """Return the table of what each step took, from *usages* and the runs of the store."""
    lines = [
        "| step | seconds | resident at most, GB | of one process (kernel's), GB | written, GB | disk at most, GB |",
        "|---|---|---|---|---|---|",
    ]
    for step in STEPS:
        (run,) = MlflowClient().search_runs(["0"], f"tags.step = '{step}'", max_results=1)
        usage = usages[step]
        figures = [usage.resident, usage.high, sum(usage.written.values()), usage.disk]
        seconds = (run.info.end_time - run.info.start_time) / 1000
        lines.append(f"| {step} | {seconds:.0f} | {' | '.join(map(gigabytes, figures))} |")
    return "\n".join(lines)


def speed_table(size: Size) -> str:
    """Return the table of decode speed against the limit of memory bandwidth: each token reads all weights."""
    limit = bandwidth()
    lines = [f"Memory: {gigabytes(limit)} GB/s read.", ""]
    lines += [
        "| wrapper | weights, GB | read for a token, GB | tokens/s at most | tokens/s | share |",
        "|---|---|---|---|---|---|",
    ]
    # Of the embedding table a token reads one row: fp32 in the ONNX file, bf16 in the checkpoint.
    for step, pattern, width in (
        ("build_pipeline_wrapper", "*.safetensors", 2),
        ("build_onnx_wrapper", "model.onnx.data", 4),
    ):
        (run,) = MlflowClient().search_runs(["0"], f"tags.step = '{step}'", max_results=1)
        uri = run.data.tags["output.model_uri"]
        with logged_folder(uri) as folder:
            weights = size_of(folder.rglob(pattern))
        read = weights - VOCABULARY * size.hidden * width
        # In a process of its own, whose memory is given back.
        script = f"from benchmarks.full_size import decode_speed; print(decode_speed({uri!r}))"
        asked = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        speed = float(asked.stdout.split()[-1])
        row = [
            gigabytes(weights),
            gigabytes(read),
            f"{limit / read:.1f}",
            f"{speed:.1f}",
            f"{speed * read / limit:.0%}",
        ]
        lines.append(f"| {step.removeprefix('build_').removesuffix('_wrapper')} | {' | '.join(row)} |")
    return "\n".join(lines)


def what_is_left(work: Path) -> str:
    """Return how often the weights lie in the artifact store in *work*, and what is left of temporary files."""
    checkpoint = size_of((work / "checkpoint").glob("*.safetensors"))
    store = work / "mlruns"
    torch, onnx = size_of(store.rglob("*.safetensors")), list(store.rglob("model.onnx.data"))
    left = size_of((work / "tmp").rglob("*"))
    return (
        f"In the artifact store: {gigabytes(torch)} GB of safetensors for a checkpoint of {gigabytes(checkpoint)} GB "
        f"({torch / checkpoint:.2f} copies), and {len(onnx)} ONNX model of {gigabytes(size_of(onnx))} GB; "
        f"{gigabytes(size_of(store.rglob('*')))} GB in all. Temporary files left: {left} bytes."
    )


def main() -> None:
    """Make the checkpoint, run the flow, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty or new folder on a disk with room")
    parser.add_argument("--clean", action="store_true", help="remove the folder in the end")
    add_size_options(parser, PHI3_MINI)
    parser.add_argument("parameters", nargs="*", metavar="KEY=VALUE", help="for the flow, as with -P")
    arguments = parser.parse_args()
    size = chosen_size(arguments)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        sys.exit(f"{work} is not empty: name another folder, or remove it")
    free, needed = shutil.disk_usage(work).free, ROOM * 2 * size.parameters
    if free < needed:
        sys.exit(f"{gigabytes(needed)} GB are needed in {work}, and {gigabytes(free)} GB are free: name another folder")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/mlflow.db"
    try:
        make_checkpoint(work / "checkpoint", size)
        usages = run_flow(work, arguments.parameters)
        memory = psutil.virtual_memory().total
        cpus = len(os.sched_getaffinity(0))
        print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {cpus} CPUs, {gigabytes(memory)} GB, {size}\n")
        print(steps_table(usages), what_is_left(work), speed_table(size), sep="\n\n")
    finally:
        if arguments.clean:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
