"""What fails is a finding: it is noted once, its figures are missing, and the other candidates go on."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

from steps.config.command_line import compose_config
from steps.evaluation.cost import Footprint
from steps.evaluation.metrics import Measured
from steps.evaluation.tasks import Example
from steps.logged_models.process import candidate
from steps.measurement.measure import TURN, Measurements, measure_candidates
from tests.conftest import PROGRAMS

pytestmark = pytest.mark.slow

BEHAVIOURS = {
    "good": {},
    "broken": {"cannot_load": "half of the file is missing"},
    "dying": {"dies_at": f"question {TURN + 1}"},
}
EXAMPLES = [
    Example(f"q{number}", [{"role": "user", "content": f"question {number}"}], f"QUESTION {number}")
    for number in range(3 * TURN)
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measurements]:
    """Yield what is measured of a good candidate, one that cannot be loaded, and one that dies in its second turn."""
    work = tmp_path_factory.mktemp("models")
    options = compose_config(["evaluate.contract_examples=1"]).evaluate
    signature = ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA)
    with ExitStack() as stack:
        (work / "behaviour.json").write_text("{}")
        for name, behaviour in BEHAVIOURS.items():
            mlflow.pyfunc.save_model(
                work / name,
                python_model=str(PROGRAMS / "upper.py"),
                artifacts={"behaviour": str(work / "behaviour.json")},
                signature=signature,
                pip_requirements=["mlflow"],
            )
            (work / name / "artifacts" / "behaviour.json").write_text(json.dumps(behaviour))
        loading = {name: stack.enter_context(candidate(name, work / name)) for name in BEHAVIOURS}
        yield measure_candidates(loading, "good", EXAMPLES, options)


def errors(found: Measurements, name: str) -> list[bool]:
    return [answer.error is not None for answer in found.answers[name]]


def test_each_has_an_answer_to_every_example_in_their_order(found: Measurements) -> None:
    for answers in found.answers.values():
        assert [answer.example_id for answer in answers] == [example.id for example in EXAMPLES]


def test_the_good_one_answers_all_whatever_the_others_do(found: Measurements) -> None:
    assert [answer.text for answer in found.answers["good"]] == [example.reference for example in EXAMPLES]
    contract = found.of("good").contract
    assert contract["contract.repeatable"] == 1
    assert contract["contract.signature"] == 1
    assert contract["contract.stop"] == 0, "its signature has stop, and it ignores it"
    assert "contract.max_tokens" not in contract, "nobody knows how many tokens its answers have"


def test_one_that_cannot_be_loaded_answers_nothing_and_says_why(found: Measurements) -> None:
    assert all(errors(found, "broken"))
    assert "half of the file is missing" in str(found.answers["broken"][0].error)
    broken = found.of("broken")
    assert broken == Measured(Footprint(size_bytes=broken.footprint.size_bytes))


def test_one_that_dies_has_answered_until_then(found: Measurements) -> None:
    assert errors(found, "dying") == [False] * TURN + [True] * 2 * TURN
    assert "the process of candidate dying died" in str(found.answers["dying"][-1].error)


def test_the_same_failure_is_told_once(found: Measurements) -> None:
    told = [failure.partition(":")[0] for failure in found.failures]
    assert (told.count("broken"), told.count("dying")) == (1, 1)


def test_a_model_without_weights_that_we_know_has_no_fidelity_and_no_time_to_a_token(found: Measurements) -> None:
    assert any("no logits" in failure for failure in found.failures if failure.startswith("good: "))
    assert not any(own.fidelity or own.timings for own in found.measured.values())
