"""EleutherAI's lm-evaluation-harness on the embedded model, with tasks of our own and without network."""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.config.command_line import compose_config
from steps.config.schema import Harness
from steps.evaluation.metrics import flatten
from steps.extras.lm_eval import ask_harness, check_harness
from steps.extras.lm_eval_metrics import harness_metrics
from steps.flow.fingerprint import differences, fingerprint
from steps.logged_models.language_model import TorchModel
from steps.logged_models.process import candidate
from steps.records.errors import StepError
from tests.conftest import TINY, examples_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="not installed: pip install -r requirements-lm-eval.txt"),
]

"""The library is imported where it is needed: it takes seconds, and every process that collects these tests pays."""

TASKS = ("choosing", "saying", "reading")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three tasks in the harness' YAML, on one file of eight questions."""
    folder = tmp_path_factory.mktemp("harness")
    rows = [
        {
            "question": each.messages[0]["content"],
            "choices": each.choices,
            "right": each.choices.index(each.reference),
            "sentence": each.reference,
        }
        for each in examples_of(compose_config(["evaluate=capitals_choice"]).evaluate)
        if len(each.messages) == 1
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "questions.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{sentence}}",
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    own: dict[str, dict[str, Any]] = {
        "choosing": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "right",
            "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_bytes", **mean}],
        },
        "saying": {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 32, "do_sample": False},
            "doc_to_target": "{{sentence[:-1]}}",
            "metric_list": [{"metric": "exact_match", **mean}],
        },
        "reading": {
            "output_type": "loglikelihood_rolling",
            "metric_list": [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity"}],
        },
    }
    for name, fields in own.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **fields}))
    return folder


@pytest.fixture(scope="module")
def weights() -> Any:
    """Return transformers' own model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model(weights: Any) -> TorchModel:
    from transformers import AutoTokenizer

    return TorchModel(weights, AutoTokenizer.from_pretrained(TINY))


def recite(request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer as a model does that goes on after its sentence."""
    words = request["messages"][-1]["content"]
    return {"choices": [{"message": {"content": f"{words} It is Madrid.\nNext"}}]}


@pytest.mark.parametrize(("chat", "shots"), [(True, 2), (False, 0)])
def test_likelihoods_are_those_of_the_harness_own_transformers_model(
    model: TorchModel, weights: Any, folder: Path, chat: bool, shots: int
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models import huggingface
    from transformers import AutoTokenizer

    from steps.extras.lm_eval_model import load_tasks, run_harness

    tasks = ["choosing", "reading"]

    ours = run_harness(model, recite, tasks, include_path=folder, num_fewshot=shots, apply_chat_template=chat)

    theirs = simple_evaluate(
        huggingface.HFLM(pretrained=weights, tokenizer=AutoTokenizer.from_pretrained(TINY)),
        tasks=tasks,
        task_manager=load_tasks(tasks, folder),
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        fewshot_random_seed=0,
    )
    for task in tasks:
        for own, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert [_flat(each) for each in own["resps"]] == [
                pytest.approx(_flat(each), abs=1e-3) for each in other["resps"]
            ]


def _flat(answers: list[Any]) -> list[float]:
    (answer,) = answers
    return [float(each) for each in answer] if isinstance(answer, list | tuple) else [float(answer)]


def test_an_answer_ends_before_the_first_stop_string(model: TorchModel, folder: Path) -> None:
    from steps.extras.lm_eval_model import run_harness

    results = run_harness(model, recite, ["saying"], include_path=folder, limit=2)

    assert [sample["resps"] for sample in results["samples"]["saying"]] == [
        [[f"{sample['doc']['question']} It is Madrid"]] for sample in results["samples"]["saying"]
    ]


def test_an_answer_that_the_task_begins_is_scored_from_there(model: TorchModel) -> None:
    from lm_eval.api.instance import Instance

    from steps.extras.lm_eval_model import CandidateLM

    lm = CandidateLM(model, recite, chat=True)
    asked, begun = {"role": "user", "content": "Capital of Spain?"}, "The capital of Spain is"

    def likelihood(context: list[dict[str, str]], words: str) -> float:
        request = Instance("loglikelihood", {}, (json.dumps(context), words), 0)
        return lm.loglikelihood([request])[0][0]

    whole = likelihood([asked], f"{begun} Madrid.")
    beginning = likelihood([asked], begun)
    rest = likelihood([asked, {"role": "assistant", "content": begun}], " Madrid.")

    assert rest == pytest.approx(whole - beginning, abs=1e-3)


@pytest.mark.parametrize(
    ("context", "options", "chat", "fact"),
    [
        ("Capital of Spain?", {}, False, "set evaluate.harness.apply_chat_template=true"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], {}, True, "gen_prefix"),
        ([{"role": "user", "content": "a"}], {"do_sample": True}, True, "set do_sample: false"),
        ([{"role": "user", "content": "a"}], {"temperature": 0.7}, True, "set do_sample: false"),
        ([{"role": "user", "content": "a " * 600}], {}, True, "leaves no room for an answer"),
    ],
)
def test_what_a_candidate_cannot_generate_is_refused(
    model: TorchModel, context: Any, options: dict[str, Any], chat: bool, fact: str
) -> None:
    from lm_eval.api.instance import Instance

    from steps.extras.lm_eval_model import CandidateLM

    text = context if isinstance(context, str) else json.dumps(context)
    request = Instance("generate_until", {}, (text, options), 0)

    with pytest.raises(ValueError, match=fact):
        CandidateLM(model, recite, chat=chat).generate_until([request])


def test_a_candidate_that_fails_stops_the_harness(model: TorchModel, folder: Path) -> None:
    from steps.extras.lm_eval_model import run_harness

    with pytest.raises(RuntimeError, match=r"no answer to 'The capital.*no choices\[0\]"):
        run_harness(model, lambda _request: {}, ["saying"], include_path=folder)


def test_a_task_that_does_not_exist_is_refused_with_the_nearest_name(folder: Path) -> None:
    options = Harness(["arc_eesy"], str(folder), None, None, True)

    with pytest.raises(StepError, match="'arc_eesy', which the harness does not know; did you mean 'arc_easy'"):
        check_harness(options)


def test_a_changed_task_file_and_another_harness_are_reasons_to_evaluate_again(folder: Path) -> None:
    asked = ["evaluate.harness.tasks=[choosing]", f"evaluate.harness.include_path={folder}"]
    before = fingerprint("evaluate", compose_config(asked), {})
    (folder / "another.yaml").write_text("task: another\n")
    after = fingerprint("evaluate", compose_config(asked), {})
    (folder / "another.yaml").unlink()

    assert differences(before, after) == ["input evaluate.harness.include_path changed"]
    assert before.inputs["lm_eval"] == version("lm_eval")
    assert "lm_eval" not in fingerprint("evaluate", compose_config([]), {}).inputs


def test_both_logged_models_are_asked_and_compared(
    folder: Path, logged_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("HUB", "DATASETS"):
        monkeypatch.setenv(f"HF_{library}_OFFLINE", "1")
    options = Harness(list(TASKS), str(folder), None, None, True)
    found = {}
    for name, own in logged_models.items():
        with candidate(name, own) as loaded:
            found[name] = loaded.run(ask_harness, name, own, options, 0)

    metrics = flatten(harness_metrics(found, "pipeline", 0))

    for metric in ("choosing.acc", "choosing.acc_bytes", "saying.exact_match"):
        assert metrics[f"pipeline.harness.{metric}"] == metrics[f"onnx.harness.{metric}"] == 1
        assert metrics[f"onnx.harness.{metric}_difference"] == 0
    perplexity = [metrics[f"{name}.harness.reading.byte_perplexity"] for name in ("pipeline", "onnx")]
    assert all(map(math.isfinite, perplexity))
    assert perplexity[0] != perplexity[1]  # four bits are not the same weights
