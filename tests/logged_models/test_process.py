"""A candidate's process holds the model, dies alone, and leaves nothing behind."""

import os
import signal
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.pyfunc import PyFuncModel

from steps.logged_models.process import candidate
from steps.records.errors import StepError
from tests.conftest import PROGRAMS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that needs nothing."""
    work = tmp_path_factory.mktemp("shout")
    mlflow.pyfunc.save_model(work / "model", python_model=str(PROGRAMS / "shout.py"), pip_requirements=["mlflow"])
    return work / "model"


def answer(model: PyFuncModel, text: str) -> list[str]:
    said: list[str] = model.predict([text])
    return said


def where(_model: PyFuncModel) -> int:
    return os.getpid()


def fail(_model: PyFuncModel) -> None:
    msg = "so it is"
    raise ValueError(msg)


def wait(_model: PyFuncModel) -> None:
    time.sleep(600)


def test_a_candidate_answers_from_a_process_of_its_own_that_ends_with_it(folder: Path) -> None:
    with candidate("onnx", folder) as loaded:
        assert loaded.run(answer, "spain") == ["SPAIN"]
        own = loaded.run(where)
        assert own != os.getpid()
        assert loaded.load_seconds > 0
    assert not psutil.pid_exists(own)


def test_what_goes_wrong_there_is_raised_here_and_the_candidate_goes_on(folder: Path) -> None:
    with candidate("onnx", folder) as loaded:
        with pytest.raises(ValueError, match="so it is"):
            loaded.run(fail)
        assert loaded.run(answer, "spain") == ["SPAIN"]


def test_a_candidate_that_dies_is_named(folder: Path) -> None:
    with candidate("onnx", folder) as loaded:
        os.kill(loaded.run(where), signal.SIGKILL)
        with pytest.raises(StepError, match="candidate onnx died"):
            loaded.run(answer, "spain")


def test_a_candidate_in_the_middle_of_its_work_is_not_waited_for(folder: Path) -> None:
    def alarm(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        with pytest.raises(KeyboardInterrupt), candidate("onnx", folder) as loaded:  # the wait is the point
            own = loaded.run(where)
            signal.alarm(1)
            loaded.run(wait)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not psutil.pid_exists(own)
