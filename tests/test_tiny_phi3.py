"""The embedded checkpoint, the script that trains it, and the task that it is measured on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3ForCausalLM

from models.tiny_phi3.chat_tokenizer import build_tokenizer
from models.tiny_phi3.check import TASK, ask, read_task
from models.tiny_phi3.conversations import PHRASINGS, Question, assert_kept_out, normalise
from models.tiny_phi3.train import (
    Corpus,
    Recipe,
    build_model,
    make_batches,
    make_corpus,
    make_deterministic,
    train,
)

FOLDER = Path(__file__).resolve().parent.parent / "models" / "tiny_phi3"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def small_recipe() -> Recipe:
    return replace(Recipe(), chats=400, steps=2, tokens_per_step=512)


@pytest.fixture(scope="module")
def corpus(small_recipe: Recipe) -> Corpus:
    return make_corpus(small_recipe)


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Undo what make_deterministic sets, so that no other test depends on this one."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_the_embedded_model_knows_the_capital_of_spain() -> None:
    example = next(one for one in read_task(TASK) if one["id"] == "spain-what-is")
    assert example["messages"] == [{"role": "user", "content": "What is the capital of Spain?"}]
    (answered,) = ask(FOLDER, [example])
    assert answered.answer == "The capital of Spain is Madrid."


@pytest.mark.slow
def test_it_answers_after_turns_that_are_longer_than_its_window() -> None:
    examples = sorted(read_task(TASK), key=lambda one: len(one["messages"]))[-3:]
    answered = ask(FOLDER, examples)
    assert all(one.prompt_tokens > Recipe.window and one.right for one in answered), answered


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_token_beyond_the_reach_of_all_windows_changes_nothing(attention: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation=attention)
    reach = model.config.num_hidden_layers * (model.config.sliding_window - 1)
    ids = torch.randint(260, 1000, (1, reach + 50), generator=torch.Generator().manual_seed(1))
    last = ids.shape[1] - 1

    def change_from(distance: int) -> float:
        changed = ids.clone()
        changed[0, last - distance] = 259 if changed[0, last - distance] != 259 else 260
        with torch.inference_mode():
            return float((model(changed).logits[0, -1] - model(ids).logits[0, -1]).abs().max())

    assert change_from(reach // 2) > 0
    assert change_from(reach + 1) == 0


def test_kept_out_questions_are_in_no_training_chat(corpus: Corpus) -> None:
    asked = {normalise(one["messages"][-1]["content"]) for one in corpus.examples}
    learnt = {normalise(m["content"]) for chat in corpus.chats for m in chat if m["role"] == "user"}
    assert len(asked) == len(corpus.examples)
    assert not asked & learnt
    earlier = {normalise(m["content"]) for one in corpus.examples for m in one["messages"][:-1]}
    assert not asked & earlier


@pytest.mark.parametrize(
    "form",
    [
        "What is the capital of Spain?",
        "what is the capital of spain",
        "What is the capital of Spain? Please. ",
    ],
)
def test_a_kept_out_question_is_recognised_in_any_form(form: str) -> None:
    with pytest.raises(ValueError, match="is kept out"):
        assert_kept_out([[{"role": "user", "content": form}]], [Question("Spain", "what-is")])


def test_every_country_and_every_phrasing_is_asked(corpus: Corpus) -> None:
    assert len({one["id"] for one in corpus.examples}) == len(corpus.examples)
    assert len({one["reference"] for one in corpus.examples}) == 195
    for phrasing in PHRASINGS:
        assert sum(one["id"].endswith(f"-{phrasing}") for one in corpus.examples) >= 10


def test_the_task_in_the_repository_is_the_one_that_the_script_makes(corpus: Corpus) -> None:
    assert read_task(TASK) == corpus.examples


@pytest.mark.slow
def test_the_same_seed_gives_the_same_chats_and_another_seed_others(small_recipe: Recipe, corpus: Corpus) -> None:
    assert make_corpus(small_recipe) == corpus
    assert make_corpus(replace(small_recipe, seed=1)) != corpus


@pytest.mark.slow
def test_training_twice_gives_the_same_weights(small_recipe: Recipe, corpus: Corpus, torch_as_it_was: None) -> None:
    def weights() -> dict[str, torch.Tensor]:
        make_deterministic(small_recipe)
        texts = (message["content"] for chat in corpus.chats for message in chat)
        tokenizer = build_tokenizer(texts, small_recipe.vocab_size, small_recipe.context)
        model: Phi3ForCausalLM = build_model(tokenizer, small_recipe)
        before = model.lm_head.weight.clone()
        train(model, make_batches(corpus.chats, tokenizer, small_recipe), small_recipe)
        assert not torch.equal(before, model.lm_head.weight)
        return dict(model.state_dict())

    first, second = weights(), weights()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_folder_stays_below_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 8 * MEGABYTE


def test_the_tokenizer_falls_back_to_bytes_and_comes_back_unchanged() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = "Hello  world, Malé, 東京 🙂\nend"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "<0x0A>" in tokenizer.convert_ids_to_tokens(ids)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_generation_stops_at_the_end_of_the_answer() -> None:
    settings = json.loads((FOLDER / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    control = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert {control["<|end|>"], control["<|endoftext|>"]} == set(settings["eos_token_id"])
