"""Answers computed as one batch, and the checkpoint's own tokens: the embedded model as the flow logged it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.pyfunc import PyFuncModel
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase

from steps.config.command_line import compose_config
from steps.evaluation.cost import cost_metrics
from steps.evaluation.integrity import HARD_TEXTS
from steps.evaluation.tasks import Example
from steps.logged_models.process import Candidate, candidate
from steps.measurement.measure import Measurements, ask_in_turns, compare_tokens, measure_candidates, measure_fidelity
from steps.measurement.worker import ask_alone, ask_batch
from tests.conftest import examples_of

pytestmark = pytest.mark.slow

WORDY = [Example("wordy", [{"role": "user", "content": "Of all the cities, what is the capital of Spain?"}], "Madrid")]


@pytest.fixture(scope="module")
def loaded(logged_models: dict[str, Path]) -> Iterator[dict[str, Candidate]]:
    """Yield both logged models, each in a process of its own."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(candidate(name, folder)) for name, folder in logged_models.items()}


@pytest.mark.parametrize("name", ["pipeline", "onnx"])
def test_a_batch_of_prompts_of_different_lengths_has_the_answers_that_each_has_alone(
    loaded: dict[str, Candidate], name: str
) -> None:
    examples = examples_of(compose_config(["evaluate.limit=11"]).evaluate) + WORDY

    alone = loaded[name].run(ask_alone, loaded[name].folder, examples, 32)
    together = loaded[name].run(ask_batch, examples, 32)

    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in alone}) > 6
    assert not [answer.error for answer in together if answer.error]


def lose_pad_token(model: PyFuncModel) -> None:
    model.get_raw_model().tokenizer.pad_token = None


def gain_pad_token(model: PyFuncModel) -> None:
    """Give the tokenizer one that tokenizer.json does not have: its id is beyond the embedding."""
    model.get_raw_model().tokenizer.add_special_tokens({"pad_token": "[PAD]"})


@pytest.mark.parametrize("change", [lose_pad_token, gain_pad_token])
def test_a_tokenizer_without_a_pad_token_of_the_model_answers_in_batches_too(
    logged_models: dict[str, Path], change: Callable[[PyFuncModel], None]
) -> None:
    examples = examples_of(compose_config(["evaluate.limit=2"]).evaluate) + WORDY
    with candidate("pipeline", logged_models["pipeline"]) as pipeline:
        alone = pipeline.run(ask_alone, pipeline.folder, examples, 32)
        pipeline.run(change)
        together = pipeline.run(ask_batch, examples, 32)

    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_multiple_choice_among_the_questions_keeps_none_of_the_others_from_being_timed_or_batched(
    loaded: dict[str, Candidate],
) -> None:
    cost = ["evaluate.cost.prompt_lengths=[16]", "evaluate.cost.batches=[1]", "evaluate.cost.repeats=1"]
    options = compose_config(["evaluate.limit=4", "evaluate.timed_examples=1", *cost]).evaluate
    choices = replace(WORDY[0], id="choice", scorer="choice", choices=("Oslo", "Madrid"))
    examples = [choices, *examples_of(options)]

    found = measure_candidates(loaded, "pipeline", examples, options)

    for name, answers in found.answers.items():
        assert [answer.example_id for answer in answers] == [example.id for example in examples]
        assert [answer.likelihoods is not None for answer in answers] == [True, *[False] * 4]
        assert [answer.seconds is not None for answer in answers] == [True, True, False, False, False]
        own = found.of(name)
        assert own.footprint.first_answer_seconds
        assert cost_metrics(own.footprint, answers, own.timings)["cost.timed_answers"] == 1


def test_probabilities_are_compared_on_as_many_questions_as_asked_for_and_tokens_on_all(
    loaded: dict[str, Candidate],
) -> None:
    options = compose_config(["evaluate.limit=5", "evaluate.fidelity.questions=2"]).evaluate
    examples, found = examples_of(options), Measurements()
    ask_in_turns(found, loaded, examples, options.max_tokens)

    measure_fidelity(found, loaded, "pipeline", examples, options)

    tokens = found.of("onnx").fidelity
    assert tokens is not None
    assert set(tokens.text) == {0, 1}
    assert found.of("onnx").token_ids.same == [True] * 5


def test_both_logged_models_read_the_tokens_of_the_checkpoints_own_tokenizer(loaded: dict[str, Candidate]) -> None:
    found = Measurements()

    compare_tokens(found, loaded, "pipeline", WORDY)

    for name in loaded:
        assert found.of(name).token_ids.checkpoint == [True] * (len(HARD_TEXTS) + 2)


def test_two_candidates_that_read_the_same_wrong_tokens_differ_from_the_checkpoint(
    logged_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(logged_models["pipeline"], tmp_path / "pipeline"))
    own = folder / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(own))
    tokenizer.normalizer = Lowercase()
    tokenizer.save(str(own))
    found = Measurements()

    with candidate("pipeline", folder) as pipeline, candidate("onnx", logged_models["onnx"]) as onnx:
        compare_tokens(found, {"pipeline": pipeline, "onnx": onnx}, "pipeline", WORDY)

    assert found.of("pipeline").token_ids.checkpoint == found.of("onnx").token_ids.checkpoint
    assert not all(found.of("onnx").token_ids.checkpoint)
