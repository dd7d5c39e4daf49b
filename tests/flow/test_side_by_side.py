"""Steps run side by side where there is room, and all of them end when one signal asks for it."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from steps.config.command_line import compose_config
from steps.flow.side_by_side import end_children, jobs_for, side_by_side
from steps.main import say
from steps.safety.memory import available_memory


def never(_is_over: object) -> None:
    raise AssertionError


def test_results_come_in_the_order_of_the_calls_which_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=600)

    def call(name: str) -> str:
        both.wait()
        return name

    assert side_by_side([partial(call, "one"), partial(call, "two")], 2, never) == ["one", "two"]


def test_steps_that_speak_at_the_same_time_have_a_line_each(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config([])
    unbuffered = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115  # as PYTHONUNBUFFERED=1 has it
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(unbuffered, write_through=True))

    def speak(step: str) -> None:
        for _ in range(500):
            say(step, config, "REUSED", "run 1")

    side_by_side([partial(speak, "build_pipeline_wrapper"), partial(speak, "build_onnx_wrapper")], 2, never)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1000
    assert all(line.endswith("run 1") and line.count("[") == 1 for line in lines)


def test_one_call_runs_in_the_thread_that_signals_reach() -> None:
    assert side_by_side([threading.current_thread], 2, never) == [threading.main_thread()]


@pytest.mark.parametrize(("calls", "jobs", "waiting"), [(2, 2, "PASSIVE"), (2, 1, ""), (1, 2, "")])
def test_threads_of_processes_that_share_cores_sleep_while_they_wait(
    monkeypatch: pytest.MonkeyPatch, calls: int, jobs: int, waiting: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    ask = [sys.executable, "-c", "import os; print(os.environ.get('OMP_WAIT_POLICY', ''), end='')"]
    found = side_by_side([partial(subprocess.check_output, ask, text=True)] * calls, jobs, never)
    assert found == [waiting] * calls
    assert "OMP_WAIT_POLICY" not in os.environ


def test_an_exception_of_one_call_ends_the_processes_of_the_others() -> None:
    started = threading.Event()

    def wait_for_a_process() -> int:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        started.set()
        return process.wait()

    def fail() -> int:
        started.wait(30)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side([fail, wait_for_a_process], 2, partial(end_children, grace=5))
    assert not [each for each in psutil.Process().children() if "time.sleep(600)" in each.cmdline()]


def test_a_signal_while_the_calls_are_still_being_started_ends_the_processes_of_those_that_run() -> None:
    started, ended = threading.Event(), threading.Event()

    def wait_for_a_process() -> int:
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
            started.set()
            code = process.wait()
        ended.set()
        return code

    class Interrupted(list[Callable[[], int]]):
        def __iter__(self) -> Iterator[Callable[[], int]]:
            yield self[0]
            started.wait(600)
            sys.exit(143)

    with pytest.raises(SystemExit):
        side_by_side(Interrupted([wait_for_a_process] * 2), 2, partial(end_children, grace=5))
    assert ended.is_set()


def test_a_checkpoint_that_fills_the_memory_is_built_one_step_at_a_time() -> None:
    assert jobs_for(1e15) == 1


def test_the_memory_limit_of_a_container_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    (tmp_path / "memory.current").write_text("600\n")
    limit.write_text("1000\n")
    assert available_memory(limit) == 400
    limit.write_text("max\n")
    assert available_memory(limit) > 1000
    assert available_memory(tmp_path / "none") > 1000
