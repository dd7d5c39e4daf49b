"""The engine's process: it serves many threads, and ends with the process that started it."""

import concurrent.futures
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.exceptions import MlflowException

from tests.conftest import ROOT

from .asking import ask, load, text_of


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one of tests/programs to its end."""
    command = [sys.executable, "-m", f"tests.programs.{program}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_threads_get_their_own_answers(chat: Any) -> None:
    rows = [ask(f"{n} hello " * (1 + n % 5), max_tokens=5 + n, temperature=n % 2, seed=n) for n in range(40)]
    expected = [text_of(chat.predict(row)[0]) for row in rows]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: text_of(chat.predict(row)[0]), rows))
    assert answers == expected


def test_batches_keep_to_their_limits(onnx_folder: Path, chat: Any) -> None:
    rows = [ask("hello " * (1 + n), max_tokens=30) for n in range(12)]
    narrow = load(onnx_folder, max_batch=3, max_batch_tokens=100)
    assert [text_of(a) for a in narrow.predict(None, rows)] == [text_of(a) for a in chat.predict(rows)]
    # Together these would need more than the context; each alone does not.
    rows = [ask("x " * 200, max_tokens=5), ask("x " * 90, max_tokens=400)]
    assert len(chat.predict(rows)) == 2


def test_a_closed_model_says_so(onnx_folder: Path) -> None:
    model = load(onnx_folder)
    stream = model.predict_stream(None, ask("hello", max_tokens=500))
    next(stream)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(model.predict, None, ask("hello", max_tokens=500))
        model.engine.close()
        for asked in (waiting.result, lambda: list(stream), lambda: model.predict(None, ask("hello"))):
            with pytest.raises(MlflowException, match=r"this model was closed: load it again"):
                asked()


def test_a_model_for_cuda_says_what_it_needs(onnx_folder: Path, tmp_path: Path) -> None:
    for file in onnx_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    genai = json.loads((onnx_folder / "genai_config.json").read_text())
    genai["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]
    (tmp_path / "genai_config.json").unlink()
    (tmp_path / "genai_config.json").write_text(json.dumps(genai))
    with pytest.raises(MlflowException, match="built for CUDA: it needs onnxruntime-genai-cuda"):
        load(tmp_path)


def test_the_engine_ends_with_its_model(onnx_folder: Path) -> None:
    before = threading.active_count()
    model = load(onnx_folder)
    assert threading.active_count() == before + 2
    del model
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_a_process_uses_its_threads_and_ends_cleanly_amid_an_answer(onnx_folder: Path, threads: int) -> None:
    before = digests(onnx_folder)
    ended = run("stream_and_exit", str(onnx_folder), str(threads))
    assert (ended.returncode, ended.stderr) == (0, "")
    engine_threads, engine = map(int, ended.stdout.split())
    assert engine_threads == threads
    assert not psutil.pid_exists(engine)
    assert digests(onnx_folder) == before


def test_a_process_uses_the_cpus_that_it_may_use_where_it_is_loaded(onnx_folder: Path) -> None:
    ended = run("stream_and_exit", str(onnx_folder), "0", "one-cpu")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split()[0] == "1"


def test_a_process_that_is_killed_fails_what_it_was_at_and_the_next_request_starts_it_again(onnx_folder: Path) -> None:
    model = load(onnx_folder)
    before = text_of(model.predict(None, ask("hello"))[0])
    stream = model.predict_stream(None, ask("hello", max_tokens=500))
    next(stream)
    os.kill(model.engine.pid, signal.SIGKILL)
    with pytest.raises(MlflowException, match=r"process was ended by SIGKILL, perhaps for want of memory,; the next"):
        list(stream)
    assert text_of(model.predict(None, ask("hello"))[0]) == before


def test_a_process_that_cannot_load_says_why(onnx_folder: Path, tmp_path: Path) -> None:
    for file in onnx_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.onnx").unlink()
    before = psutil.Process().children()
    with pytest.raises(MlflowException, match=r"model\.onnx"):
        load(tmp_path)
    assert psutil.Process().children() == before


def test_the_process_ends_with_one_that_is_killed(onnx_folder: Path) -> None:
    command = [sys.executable, "-m", "tests.programs.stream_and_exit", str(onnx_folder), "1", "sleep"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        parent.stdout.readline()
        assert psutil.pid_exists(int(parent.stdout.readline()))
        parent.kill()
        # Both hold this pipe: it ends when both have.
        assert parent.stdout.read() == ""


def test_a_fork_has_a_process_of_its_own(onnx_folder: Path) -> None:
    ended = run("fork_after_loading", str(onnx_folder))
    assert (ended.returncode, ended.stderr) == (0, "")
