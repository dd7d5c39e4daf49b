"""There is one champion, the one before it can come back, and the history says who was it, whatever happens."""

from collections.abc import Iterator

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from steps.records.errors import StepError
from steps.registry.aliases import changing, history, make_champion, number_with, roll_back, settle, with_alias
from tests.conftest import program


@pytest.fixture
def echo(store: str) -> Iterator[MlflowClient]:
    """Yield a client of a store in which the registered model `echo` has nine versions of nothing."""
    client = MlflowClient()
    client.create_registered_model("echo")
    for _ in range(9):
        client.create_model_version("echo", "file:///nowhere")
    yield client


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every version for whole: that a damaged one does not come back is tested where models are real."""
    monkeypatch.setattr("steps.registry.aliases.damage_of_version", lambda _version: None)


def crown(version: str) -> None:
    with changing("echo"):
        make_champion("echo", version, f"a test made it {version}")


def state() -> tuple[str | None, str | None, list[tuple[str | None, str]]]:
    """Return champion, previous, and the changes in the history."""
    changes = [(change.replaced, change.version) for change in history("echo")]
    return number_with("echo", "champion"), number_with("echo", "previous"), changes


def test_a_new_champion_makes_the_present_one_previous_and_history_says_so(echo: MlflowClient) -> None:
    crown("1")
    assert state() == ("1", None, [(None, "1")])
    crown("2")
    assert state() == ("2", "1", [(None, "1"), ("1", "2")])


def test_the_history_says_when_by_which_run_by_whom_and_why(echo: MlflowClient) -> None:
    with mlflow.start_run() as active:
        crown("1")
    (change,) = history("echo")
    assert change.run_id == active.info.run_id
    assert change.reason == "a test made it 1"
    assert change.user == active.info.user_id
    assert change.time.endswith("Z")


def test_a_rollback_exchanges_champion_and_previous_and_a_second_one_does_again(echo: MlflowClient) -> None:
    crown("1")
    crown("2")
    assert roll_back("echo", "it was worse").reason == "it was worse"
    assert state() == ("1", "2", [(None, "1"), ("1", "2"), ("2", "1")])
    roll_back("echo", "it was not")
    assert state()[:2] == ("2", "1")


def test_without_a_champion_before_nothing_is_rolled_back(echo: MlflowClient) -> None:
    with pytest.raises(StepError, match="echo has no version with the alias champion"):
        roll_back("echo", "")
    crown("1")
    with pytest.raises(StepError, match="echo has no version with the alias previous: nothing can be rolled back"):
        roll_back("echo", "")
    assert state()[:2] == ("1", None)


def test_a_change_by_hand_is_noticed_before_the_next_one(echo: MlflowClient) -> None:
    crown("1")
    echo.set_registered_model_alias("echo", "champion", "5")
    crown("2")
    assert state() == ("2", "5", [(None, "1"), ("1", "5"), ("5", "2")])
    assert history("echo")[1].reason == "made by hand, or by a run that was interrupted"


def test_a_champion_that_was_deleted_and_replaced_by_hand_does_not_stop_the_next_change(echo: MlflowClient) -> None:
    for version in ("1", "2", "3"):
        crown(version)
    echo.delete_model_version("echo", "3")
    echo.set_registered_model_alias("echo", "champion", "2")
    with changing("echo"):
        settle("echo")
    assert state() == ("2", None, [(None, "1"), ("1", "2"), ("2", "3"), ("3", "2")])
    crown("4")
    assert state()[:2] == ("4", "2")


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_not_taken_for_one_without_a_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    with pytest.raises(MlflowException, match=r"127\.0\.0\.1"):
        with_alias("echo", "champion")


@pytest.mark.slow
@pytest.mark.parametrize("survived", [1, 2])
def test_a_promotion_that_was_killed_halfway_is_completed_by_the_next_change(
    echo: MlflowClient, store: str, survived: int
) -> None:
    crown("1")
    assert program("dying_promotion.py", "2", str(survived), MLFLOW_TRACKING_URI=store).returncode == -9
    with changing("echo"):
        settle("echo")
    assert state() == ("2", "1", [(None, "1"), ("1", "2")])


@pytest.mark.slow
@pytest.mark.parametrize("survived", [1, 2])
def test_a_rollback_that_was_killed_halfway_is_completed_by_the_same_command(
    echo: MlflowClient, store: str, survived: int
) -> None:
    crown("1")
    crown("2")
    assert program("dying_promotion.py", "rollback", str(survived), MLFLOW_TRACKING_URI=store).returncode == -9
    roll_back("echo", "again")
    assert state() == ("1", "2", [(None, "1"), ("1", "2"), ("2", "1")])


@pytest.mark.slow
def test_of_eight_promotions_at_once_one_wins_and_the_history_has_them_all(echo: MlflowClient, store: str) -> None:
    crown("1")
    done = program("promotions_at_once.py", *map(str, range(2, 10)), MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stderr
    champion, previous, changes = state()
    assert len(changes) == 9
    assert {version for _, version in changes} == {str(version) for version in range(1, 10)}
    # Each took the place of the one before it, and the last two are champion and previous.
    assert [replaced for replaced, _ in changes[1:]] == [version for _, version in changes[:-1]]
    assert (previous, champion) == changes[-1]
