"""Multiple choice on the embedded model: the weights themselves, and both logged models as the step asks them."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.tiny_phi3.choices import write_choices
from steps.config.command_line import compose_config
from steps.evaluation.asking import Answer
from steps.evaluation.choices import likeliest, log_likelihoods
from steps.evaluation.predictions import score
from steps.evaluation.tasks import Example
from steps.logged_models.language_model import TorchModel
from steps.logged_models.process import candidate
from steps.measurement.measure import measure_candidates
from steps.measurement.worker import ask_alone, peak_memory
from tests.conftest import ROOT, examples_of

TINY = ROOT / "models" / "tiny_phi3"


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return examples_of(compose_config(["evaluate=capitals_choice", "evaluate.limit=30"]).evaluate)


def test_the_task_is_what_its_script_writes(tmp_path: Path) -> None:
    write_choices(tmp_path / "task.jsonl")

    assert (tmp_path / "task.jsonl").read_bytes() == (ROOT / "data" / "capitals_choice.jsonl").read_bytes()


def test_each_place_among_the_choices_is_right_about_equally_often(examples: list[Example]) -> None:
    places = [example.choices.index(example.reference) for example in examples]

    assert {place: places.count(place) >= 3 for place in range(4)} == dict.fromkeys(range(4), True)


def test_the_embedded_weights_find_the_right_answer_likeliest(examples: list[Example]) -> None:
    model = TorchModel(AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY))

    for example in examples[:10]:
        found = log_likelihoods(model, example)
        assert likeliest(found, "choice") == likeliest(found, "choice_norm") == example.reference
        assert found[example.reference] > -1 > max(value for text, value in found.items() if text != example.reference)


@pytest.mark.slow
def test_memory_is_that_of_the_wrapper_without_the_copy_that_shows_likelihoods(logged_models: dict[str, Path]) -> None:
    few = ["evaluate.limit=4", "evaluate.cost.prompt_lengths=[16]", "evaluate.cost.batches=[1]"]
    options = compose_config(["evaluate=capitals_choice", *few]).evaluate
    with ExitStack() as stack:
        loading = {name: stack.enter_context(candidate(name, folder)) for name, folder in logged_models.items()}
        found = measure_candidates(loading, "pipeline", examples_of(options), options)
        afterwards = loading["onnx"].run(peak_memory)
    assert all(answer.likelihoods for answer in found.answers["onnx"])
    assert (
        found.of("onnx").footprint.peak_memory_bytes or 0
    ) < afterwards - 20e6  # onnxruntime-genai's code alone is larger


@pytest.mark.slow
def test_both_logged_models_choose_by_their_own_logits(examples: list[Example], logged_models: dict[str, Path]) -> None:
    answers: dict[str, list[Answer]] = {}
    for name, folder in logged_models.items():
        with candidate(name, folder) as loaded:
            answers[name] = loaded.run(ask_alone, folder, examples, 32)

    predictions = score(examples, answers)

    assert all(prediction.right == {"pipeline": True, "onnx": True} for prediction in predictions)
    for prediction in predictions:
        torch, int4 = (prediction.answers[name].likelihoods for name in ("pipeline", "onnx"))
        assert torch
        assert int4
        assert torch.keys() == int4.keys() == set(prediction.example.choices)
        assert torch != int4  # four bits are not the same weights
