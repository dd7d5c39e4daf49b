"""Train the tiny Phi-3 that this repository embeds, and write its evaluation task.

    python -m models.tiny_phi3.train               # over the files that are in the repository
    python -m models.tiny_phi3.train --out /tmp/x  # elsewhere

Reads capitals.csv; writes data/capitals.jsonl, the checkpoint (if it answers well enough) and the figures in
its card. Seeded: on one machine the same weights come out again, to the last bit.
"""

import argparse
import hashlib
import json
import math
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from models.tiny_phi3.chat_tokenizer import ASSISTANT, END, END_OF_TEXT, build_tokenizer, save_tokenizer
from models.tiny_phi3.check import REQUIRED_ACCURACY, TASK, Answered, accuracy_by_kind, ask
from models.tiny_phi3.conversations import (
    Example,
    Message,
    assert_kept_out,
    evaluation_task,
    read_capitals,
    split_questions,
    training_chats,
)

HERE = Path(__file__).resolve().parent
FIGURES_START = "<!-- figures: written by train.py -->"
FIGURES_END = "<!-- end of figures -->"
IGNORED = -100  # the label that stands for "nothing to learn here"


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, besides the code, capitals.csv and the machine."""

    seed: int = 20261120
    # Sums depend on how they are split among threads, so their number is part of the recipe.
    threads: int = 2
    vocab_size: int = 1024
    context: int = 512
    window: int = 64
    # 128 and 384: whole blocks for every int4 block size from 16 to 128
    hidden: int = 128
    intermediate: int = 384
    layers: int = 4
    heads: int = 4
    chats: int = 28_000
    tokens_per_step: int = 4096
    steps: int = 600
    peak_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1


# -------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Corpus:
    """What is learnt and what is asked, with no question in common."""

    chats: list[list[Message]]
    examples: list[Example]


@dataclass(frozen=True)
class Batch:
    """Token ids and their labels, both of shape (chats, longest chat), padded at the right."""

    ids: torch.Tensor
    labels: torch.Tensor


def make_corpus(recipe: Recipe) -> Corpus:
    """Return the chats and examples that follow from capitals.csv and the recipe's seed."""
    capitals = read_capitals(HERE / "capitals.csv")
    trained, kept_out = split_questions(list(capitals), recipe.seed)
    chats = list(training_chats(capitals, trained, recipe.chats, recipe.seed))
    assert_kept_out(chats, kept_out)
    return Corpus(chats, evaluation_task(capitals, trained, kept_out, recipe.seed))


def encode(chat: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return (ids, labels) of *chat*, cut to the context.

    Only answers, and the <|end|> after them, have labels.
    """
    text = tokenizer.apply_chat_template(list(chat), tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=True)["input_ids"]
    vocabulary = tokenizer.get_vocab()
    assistant, end = vocabulary[ASSISTANT], vocabulary[END]
    labels, answering = [], False
    for token in ids:
        labels.append(token if answering else IGNORED)
        answering = token == assistant or (answering and token != end)
    return ids, labels


def make_batches(chats: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> list[Batch]:
    """Return *chats* in shuffled batches of up to tokens_per_step tokens, chats of like length together."""
    encoded = sorted((encode(chat, tokenizer) for chat in chats), key=lambda pair: len(pair[0]))
    batches, start = [], 0
    while start < len(encoded):
        size = 1
        # Sorted: the last chat is the longest, so it decides the width of the batch.
        while start + size < len(encoded) and (size + 1) * len(encoded[start + size][0]) <= recipe.tokens_per_step:
            size += 1
        rows = encoded[start : start + size]
        width = len(rows[-1][0])
        ids = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows]
        labels = [labels + [IGNORED] * (width - len(labels)) for _, labels in rows]
        batches.append(Batch(torch.tensor(ids), torch.tensor(labels)))
        start += size
    random.Random(f"batches {recipe.seed}").shuffle(batches)  # noqa: S311  # seeded on purpose
    return batches


# ------------------------------------------------------------------------------------------- model


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Phi3ForCausalLM:
    """Return a Phi-3 with random weights, every layer of which attends to the last *window* tokens."""
    vocabulary = tokenizer.get_vocab()
    end_of_text, end = vocabulary[END_OF_TEXT], vocabulary[END]
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        original_max_position_embeddings=recipe.context,
        sliding_window=recipe.window,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )
    model = Phi3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[end_of_text, end],
        pad_token_id=end_of_text,
    )
    return model


# ---------------------------------------------------------------------------------------- training


def make_deterministic(recipe: Recipe) -> None:
    """Fix, for this process, all that could make two trainings differ."""
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(recipe.seed)


def train(model: Phi3ForCausalLM, batches: Sequence[Batch], recipe: Recipe) -> None:
    """Train *model* in place for recipe.steps steps, one batch each, in rounds through *batches*."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": scales, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    model.train()
    started = time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        batch = batches[step % len(batches)]
        # No attention mask: the padding is at the right, where no labelled position looks.
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
        labels = batch.labels[:, 1:]
        learnt = labels != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[learnt]), labels[learnt])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            print(f"step {step:4d}  loss {loss.item():.5f}  {time.monotonic() - started:4.0f} s", flush=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the rate of *step*: a linear rise, then half a cosine down to a hundredth of the peak."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.peak_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


# -------------------------------------------------------------------------------------------- card


def write_figures(card: Path, figures: dict[str, str]) -> None:
    """Replace the table between the card's two marks."""
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())])
    head, start, rest = card.read_text(encoding="utf-8").partition(FIGURES_START)
    _, end, tail = rest.partition(FIGURES_END)
    if not (start and end):
        msg = f"{card} has no place for the figures: a line {FIGURES_START!r}, later a line {FIGURES_END!r}"
        raise ValueError(msg)
    card.write_text(f"{head}{start}\n{table}\n{end}{tail}", encoding="utf-8")


def describe(
    folder: Path,
    recipe: Recipe,
    corpus: Corpus,
    answered: Sequence[Answered],
    parameters: int,
    took: str,
) -> dict[str, str]:
    """Return the card's figures on the checkpoint in *folder*: name to value, as text."""
    weights = folder / "model.safetensors"
    accuracy = {
        f"kept-out questions right, {kind}": f"{right} of {asked} ({right / asked:.1%})"
        for kind, (right, asked) in accuracy_by_kind(answered, recipe.window).items()
    }
    return accuracy | {
        "parameters": f"{parameters:,}",
        "size of model.safetensors": f"{weights.stat().st_size:,} bytes",
        "sha256 of model.safetensors": f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`",
        "chats in the training data": f"{len(corpus.chats):,}",
        "training": f"{recipe.steps:,} steps of up to {recipe.tokens_per_step:,} tokens",
        "time, with data, tokenizer and check": took,
        "machine": f"{cpu_name()}, {recipe.threads} threads",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "date": date.today().isoformat(),
    }


def cpu_name() -> str:
    """Return what Linux calls the processor, or the architecture elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return names[0] if names else platform.machine()


def main() -> int:
    """Make the data, train, check, write; return 1 if too few answers were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the checkpoint (default: %(default)s)")
    parser.add_argument("--task", type=Path, default=TASK, help="file for the evaluation task (default: %(default)s)")
    args = parser.parse_args()
    recipe = Recipe()
    make_deterministic(recipe)
    started = time.monotonic()

    corpus = make_corpus(recipe)
    args.task.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in corpus.examples]
    args.task.write_text("".join(lines), encoding="utf-8")
    print(f"{len(corpus.chats):,} chats to learn from; {len(corpus.examples)} kept-out questions: {args.task}")

    texts = (message["content"] for chat in corpus.chats for message in chat)
    tokenizer = build_tokenizer(texts, recipe.vocab_size, recipe.context)
    batches = make_batches(corpus.chats, tokenizer, recipe)
    model = build_model(tokenizer, recipe)
    print(f"{len(batches)} batches, {model.num_parameters():,} parameters, {recipe.steps} steps", flush=True)
    train(model, batches, recipe)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        answered = ask(folder, corpus.examples)
        right = sum(one.right for one in answered)
        print(f"{right} of {len(answered)} kept-out questions right after {time.monotonic() - started:.0f} s")
        if right < REQUIRED_ACCURACY * len(answered):
            print(f"below {REQUIRED_ACCURACY:.0%}: {args.out} is left as it was", file=sys.stderr)
            return 1
        args.out.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            shutil.copyfile(file, args.out / file.name)
    if args.out.resolve() != HERE:
        for name in ("README.md", "LICENSE"):
            shutil.copyfile(HERE / name, args.out / name)
    # Both: processor time also tells how long it takes where nothing else runs.
    took = f"{time.monotonic() - started:.0f} s ({time.process_time():.0f} s of processor time)"
    figures = describe(args.out, recipe, corpus, answered, model.num_parameters(), took)
    write_figures(args.out / "README.md", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
