"""What each recipe costs a checkpoint in quality, and gains in size and speed: one table, in one run.

    python -m benchmarks.recipes CHECKPOINT [RECIPE ...] [--work build/recipes] [--text FILE ...] [--tokens 8192]

CHECKPOINT is a folder as `benchmarks.smollm2` makes it. Every recipe of `onnx_recipes.LADDER`, or those named, is built
once below --work. The text's tokens are read in pieces of --context, of which the second half is measured, as
llama.cpp's `perplexity --kl-divergence` does; the reference is transformers in fp32. The recipes decode in turns, each
by onnxruntime-genai's bare loop, so that what slows the machine slows all of them alike: its ratios tell more than its
tokens a second. Prints Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import in_turns, machine, ratio
from steps.checkpoint.shared_embedding import share_embedding
from steps.evaluation.fidelity import Text, chunks, compare, fidelity_metrics, joined, measured_rows
from steps.records.onnx_recipes import LADDER, Recipe, builder_arguments, unusable

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "docs/guides/evaluation.md", "docs/reference/serving.md")
PROMPT, ANSWER = 64, 64
"""Tokens of a decoding that is timed."""

SECONDS = "seconds"
"""The file beside a build that says how long it took."""

Logits = npt.NDArray[np.float32]


def build(recipe: Recipe, checkpoint: Path, folder: Path) -> Path:
    """Return *folder* with the build of *checkpoint*, made unless it is there. Raises CalledProcessError."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / "onnx"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(made)]
        command += ["-e", "cpu", "-c", f"{work}/cache", *builder_arguments(recipe)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        if recipe.shares_after_the_build:
            share_embedding(made)
        (made / SECONDS).write_text(str(time.perf_counter() - started))
        made.rename(folder)
    return folder


def reference_logits(checkpoint: Path, texts: Sequence[Text]) -> list[Logits]:
    """Return transformers' fp32 logits of the measured tokens of each text."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        # A copy of the measured half: the other's memory is given back.
        return [measured_rows(model(torch.tensor([text.ids])).logits[0].numpy(), text).copy() for text in texts]


class Build:
    """A folder of og's builder, loaded with a thread for each usable CPU."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og

        config = og.Config(str(folder))
        session = {"intra_op_num_threads": len(os.sched_getaffinity(0))}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)

    def _generator(self, ids: Sequence[int], answer: int) -> Any:  # noqa: ANN401  og has no types
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        length = len(ids) + answer
        params.set_search_options(batch_size=1, max_length=length, min_length=length, do_sample=False)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.array([ids], dtype=np.int32))
        return generator

    def fidelity(self, texts: Sequence[Text], reference: Sequence[Logits]) -> dict[str, float]:
        """Return the figures of `fidelity_metrics`."""
        parts = []
        for number, (text, expected) in enumerate(zip(texts, reference, strict=True)):
            logits = np.asarray(self._generator(text.ids, 0).get_output("logits")[0], dtype=np.float32)
            parts.append(compare(number, text, expected, measured_rows(logits, text)))
        return fidelity_metrics(joined(parts), 0)

    def decode_rate(self, prompt: Sequence[int]) -> float:
        """Return the tokens a second of an answer to *prompt*, without those of reading it."""
        generator = self._generator(prompt, ANSWER)
        generator.generate_next_token()
        started = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        return (ANSWER - 1) / (time.perf_counter() - started)


def texts_of(checkpoint: Path, files: Iterable[Path], tokens: int, context: int) -> list[Text]:
    """Return the first *tokens* tokens of the *files* in pieces of *context*."""
    from transformers import AutoTokenizer

    text = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    ids = AutoTokenizer.from_pretrained(checkpoint).encode(text, add_special_tokens=False)
    return chunks([], ids[:tokens], context)


def size(folder: Path, pattern: str) -> int:
    """Return the bytes of the files in *folder* whose names fit *pattern*."""
    return sum(path.stat().st_size for path in folder.glob(pattern))


def usable_recipes(checkpoint: Path, names: Sequence[str]) -> list[Recipe]:
    """Return the named recipes, or all, and fp32 with them; print why one is left out."""
    config = json.loads((checkpoint / "config.json").read_text())
    recipes = []
    for recipe in LADDER:
        if names and recipe.name not in (*names, "fp32"):
            continue
        if reason := unusable(recipe, config):
            print(f"{recipe.name} is left out: {reason}")
        else:
            recipes.append(recipe)
    return recipes


def main() -> None:
    """Print the table of the recipes named on the command line."""
    parser = argparse.ArgumentParser(description="Build a checkpoint by recipes, and measure each.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(recipe.name for recipe in LADDER))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "recipes", help="keeps what was built")
    parser.add_argument("--text", type=Path, nargs="+", default=[ROOT / name for name in TEXTS])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="of decoding")
    options = parser.parse_args()
    checkpoint: Path = options.checkpoint
    recipes = usable_recipes(checkpoint, options.recipes)
    folders = {r.name: build(r, checkpoint, options.work / checkpoint.name / r.name) for r in recipes}
    texts = texts_of(checkpoint, options.text, options.tokens, options.context)
    reference = reference_logits(checkpoint, texts)
    builds = {name: Build(folder) for name, folder in folders.items()}
    figures = {name: made.fidelity(texts, reference) for name, made in builds.items()}
    prompt = texts[0].ids[:PROMPT]
    rates = in_turns(options.rounds, {name: partial(made.decode_rate, prompt) for name, made in builds.items()})
    print(f"\n{checkpoint.name}, {figures['fp32']['fidelity.tokens']} tokens measured; {machine()}\n")
    print("| recipe | MB | of the checkpoint | perplexity, ratio | KL | same top | decode tok/s | of fp32 | build s |")
    print(f"|---{'|---' * 8}|")
    for name, folder in folders.items():
        told, bytes_ = figures[name], size(folder, "model.onnx*")
        print(
            f"| {name} | {bytes_ / 1e6:.0f} | {bytes_ / size(checkpoint, '*.safetensors'):.3f}"
            f" | {told['fidelity.perplexity_ratio']:.3f} | {told['fidelity.kl_mean']:.4f}"
            f" | {told['fidelity.same_top']:.1%} | {median(rates[name]):.0f} | {ratio(rates, name, 'fp32'):.2f}"
            f" | {float((folder / SECONDS).read_text()):.0f} |"
        )


if __name__ == "__main__":
    main()
