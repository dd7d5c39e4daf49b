"""What a candidate's process tells of itself: its memory, the tokens it reads, and times of prompts it has not seen."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA

from steps.config.command_line import compose_config
from steps.evaluation.tasks import Example
from steps.logged_models.language_model import OnnxModel
from steps.logged_models.process import Candidate, candidate
from steps.measurement.measure import Measurements, ask_in_turns, measure_fidelity, time_in_turns
from steps.measurement.worker import peak_memory
from steps.wrappers.onnx.engine.prefix_cache import BLOCK_SIZE, common_prefix
from tests.conftest import PROGRAMS, TINY, examples_of, run

pytestmark = pytest.mark.slow

LENGTHS = (32, 128)
TOUCHED = 200_000_000

Loading = Callable[..., Candidate]


@pytest.fixture
def loading(tmp_path: Path) -> Iterator[Loading]:
    """Yield a function that loads a model with the embedded tokenizer, which notes what it is asked in a file."""
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes((TINY / name).read_bytes())
    (tokenizer / "genai_config.json").write_text('{"model": {"context_length": 512}}')
    signature = ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA)
    with ExitStack() as stack:

        def load(name: str, child_holds: int = 0, tells: dict[str, int] | None = None) -> Candidate:
            behaviour = {"log": str(tmp_path / f"{name}.log"), "tells": tells or {}, "child_holds": child_holds}
            (tmp_path / "behaviour.json").write_text(json.dumps(behaviour))
            mlflow.pyfunc.save_model(
                tmp_path / name,
                python_model=str(PROGRAMS / "noting.py"),
                artifacts={"onnx": str(tokenizer), "behaviour": str(tmp_path / "behaviour.json")},
                signature=signature,
                pip_requirements=["mlflow"],
            )
            (tmp_path / f"{name}.log").unlink(missing_ok=True)
            return stack.enter_context(candidate(name, tmp_path / name))

        yield load


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return examples_of(compose_config(["evaluate.limit=40"]).evaluate)


def own_memory(_model: PyFuncModel) -> int:
    return psutil.Process(os.getpid()).memory_info().rss


def test_no_prompt_that_is_timed_begins_like_another(loading: Loading, examples: list[Example], tmp_path: Path) -> None:
    cost = compose_config(["evaluate.cost.repeats=1"]).evaluate.cost
    found, loaded = Measurements(), loading("onnx")

    time_in_turns(found, {"onnx": loaded}, loaded, examples, cost)

    calls = [json.loads(line) for line in (tmp_path / "onnx.log").read_text().splitlines()]
    assert [len(chats) for chats in calls] == ([1] * 4 + [4] * 4) * len(LENGTHS)
    prompts = [OnnxModel(TINY).chat(chat, "")[0] for chats in calls for chat in chats]
    assert max(common_prefix(one, other) for one, other in combinations(prompts, 2)) < BLOCK_SIZE
    firsts = [chat[0]["content"].split()[0] for chats in calls for chat in chats]
    assert len(set(firsts)) == len(firsts)
    assert [len(prompt) for prompt in prompts] == [length for length in LENGTHS for _ in range(20)]
    assert [timing.prompt_tokens for timing in found.of("onnx").timings] == [
        length for length in LENGTHS for _ in (1, 4)
    ]


def test_a_prompt_shorter_than_a_word_and_its_number_is_as_short_as_it_can_be(
    loading: Loading, examples: list[Example], tmp_path: Path
) -> None:
    cost = compose_config(["evaluate.cost.prompt_lengths=[1]", "evaluate.cost.batches=[1]"]).evaluate.cost
    loaded = loading("onnx")

    time_in_turns(Measurements(), {"onnx": loaded}, loaded, examples[:1], cost)

    lines = (tmp_path / "onnx.log").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 8


def test_memory_is_that_of_the_process_and_of_those_it_started(loading: Loading) -> None:
    loaded = loading("onnx", child_holds=TOUCHED)
    # First: to be asked for this test's own function, the process imports this file, and grows.
    own = loaded.run(own_memory)
    # Less a tenth: the kernel counts pages in bundles.
    assert loaded.run(peak_memory) > own + 0.9 * TOUCHED


def test_tokens_are_the_same_if_the_candidate_was_fed_as_many_as_the_reference(
    loading: Loading, examples: list[Example]
) -> None:
    language = OnnxModel(TINY)
    read = {each.messages[-1]["content"]: len(language.chat(each.messages, "")[0]) for each in examples}
    last = examples[-1].messages[-1]["content"]
    candidates = {
        "pipeline": loading("pipeline"),
        "silent": loading("silent"),
        "honest": loading("honest", tells=read),
        "other": loading("other", tells=read | {last: read[last] + 1}),
    }
    found = Measurements()

    ask_in_turns(found, candidates, examples, 8)
    measure_fidelity(found, candidates, "pipeline", examples, compose_config([]).evaluate)

    same = {name: found.of(name).token_ids.same.count(False) for name in ("silent", "honest", "other")}
    assert same == {"silent": 0, "honest": 0, "other": 1}


def test_the_memory_of_a_candidate_is_not_that_of_our_plots() -> None:
    """A process that evaluate spawns imports the main module again, and what it is told to run."""
    done = run(sys.executable, "-c", "import sys, steps.__main__, steps.measurement.worker; print(*sys.modules)")

    assert done.returncode == 0, done.stderr
    assert "steps.measurement.worker" in done.stdout.split()
    assert not {"matplotlib", "steps.report.page", "steps.evaluate", "torch"} & set(done.stdout.split())
