"""What each recipe costs a checkpoint in quality, and gains in size and speed: one table, in one run.

    python -m benchmarks.recipes CHECKPOINT [RECIPE ...] [--llama-cpp] [--work build/recipes] [--text FILE ...]
                                 [--tokens 8192] [--json FILE]

CHECKPOINT is a folder as `benchmarks.smollm2` makes it. Every recipe of `onnx_recipes.LADDER`, or those named, is built
once below --work, and measured once on the same texts. With --llama-cpp, which needs requirements-benchmarks.in,
llama.cpp's quantisations of the same weights come beside them. The text's tokens are read in pieces of --context, of
which the second half is measured, as llama.cpp's `perplexity --kl-divergence` does; the reference is transformers in
fp32. All decode in turns, each in its library's bare loop, so that what slows the machine slows all of them alike: the
ratios tell more than the tokens a second. Prints Markdown; `benchmarks.recipes_plot` draws the JSON.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.gguf_files import FULL, make_gguf, weight_bytes, weight_types
from benchmarks.llama_cpp_recipes import CLOSEST, KINDS, LlamaCpp
from benchmarks.report import in_turns, machine, ratio
from steps.config.onnx import ExecutionProvider
from steps.evaluation.fidelity import Text, chunks, compare, fidelity_metrics, joined, measured_rows
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import LADDER, Recipe, unusable

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("README.md", "docs/guides/evaluation.md", "docs/reference/serving.md")
PROMPT, ANSWER = 64, 64
"""Tokens of a decoding that is timed."""

SECONDS = "seconds"
"""The file beside a build that says how long it took."""

Logits = npt.NDArray[np.float32]
Figures = dict[str, float]


def build(recipe: Recipe, checkpoint: Path, folder: Path) -> Path:
    """Return *folder* with the build of *checkpoint* as the flow makes it, unless it is there. Raises StepError."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / "onnx"
        build_onnx(checkpoint, made, recipe, ExecutionProvider.cpu, Path(work) / "builder.log")
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


class Model(Protocol):
    """What is measured: a quantised model in memory."""

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of *ids*."""

    def decode_rate(self, prompt: Sequence[int], answer: int) -> float:
        """Return the tokens a second of *answer* tokens after *prompt*, without the first, which needs the prompt."""


def fidelity(model: Model, texts: Sequence[Text], reference: Sequence[Logits]) -> Figures:
    """Return the figures of `fidelity_metrics` of *model*."""
    parts = []
    for number, (text, expected) in enumerate(zip(texts, reference, strict=True)):
        parts.append(compare(number, text, expected, measured_rows(model.logits(text.ids), text)))
    return fidelity_metrics(joined(parts), 0)


def fidelities(models: Mapping[str, Model], checkpoint: Path, texts: Sequence[Text], work: Path) -> dict[str, Figures]:
    """Return the figures of each model by name; *work* keeps them, so that the same texts are not measured again."""
    digest = hashlib.sha256(json.dumps([text.ids for text in texts]).encode()).hexdigest()[:16]
    reference: list[Logits] = []
    found = {}
    for name, model in models.items():
        file = work / f"{name}.{digest}.json"
        if not file.exists():
            reference = reference or reference_logits(checkpoint, texts)
            file.write_text(json.dumps(fidelity(model, texts, reference)))
        found[name] = json.loads(file.read_text())
    return found


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

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of *ids*."""
        return np.asarray(self._generator(ids, 0).get_output("logits")[0], dtype=np.float32)

    def decode_rate(self, prompt: Sequence[int], answer: int) -> float:
        """Return the tokens a second of *answer* tokens after *prompt*, without the first, which needs the prompt."""
        generator = self._generator(prompt, answer)
        generator.generate_next_token()
        started = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        return (answer - 1) / (time.perf_counter() - started)


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


def print_table(rows: Mapping[str, Mapping[str, float]], seconds: Mapping[str, float]) -> None:
    """Print the figures of each model, and the seconds that its build took where they are known."""
    print("| recipe | MB | of the checkpoint | perplexity, ratio | KL | same top | decode tok/s | of fp32 | build s |")
    print(f"|---{'|---' * 8}|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['bytes'] / 1e6:.0f} | {row['of the checkpoint']:.3f} | {row['perplexity, ratio']:.3f}"
            f" | {row['KL']:.4f} | {row['same top']:.1%} | {row['decode tok/s']:.0f} | {row['of fp32']:.2f}"
            f" | {f'{seconds[name]:.0f}' if name in seconds else ''} |"
        )


def main() -> None:
    """Print the table of the recipes named on the command line."""
    parser = argparse.ArgumentParser(description="Build a checkpoint by recipes, and measure each.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=", ".join(recipe.name for recipe in LADDER))
    parser.add_argument("--llama-cpp", action="store_true", help=f"and llama.cpp's {', '.join(KINDS)}")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "recipes", help="keeps what was built")
    parser.add_argument("--text", type=Path, nargs="+", default=[ROOT / name for name in TEXTS])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="of decoding")
    parser.add_argument("--json", type=Path, help="gets the figures")
    options = parser.parse_args()
    checkpoint: Path = options.checkpoint
    work: Path = options.work / checkpoint.name
    folders = {r.name: build(r, checkpoint, work / r.name) for r in usable_recipes(checkpoint, options.recipes)}
    kinds = KINDS if options.llama_cpp else ()
    files = {f"llama.cpp {kind}": make_gguf(checkpoint, work, kind) for kind in kinds}
    texts = texts_of(checkpoint, options.text, options.tokens, options.context)
    models: dict[str, Model] = {name: Build(folder) for name, folder in folders.items()}
    models |= {name: LlamaCpp(file, options.context) for name, file in files.items()}
    told = fidelities(models, checkpoint, texts, work)
    if (full := told.get(f"llama.cpp {FULL}")) and not full["fidelity.kl_mean"] < CLOSEST:
        sys.exit(f"llama.cpp computes another model of the same fp16 weights: KL {full['fidelity.kl_mean']:.4f}")
    prompt = texts[0].ids[:PROMPT]
    rates = in_turns(
        options.rounds, {name: partial(model.decode_rate, prompt, ANSWER) for name, model in models.items()}
    )
    sizes = {name: size(folder, "model.onnx*") for name, folder in folders.items()}
    sizes |= {name: weight_bytes(file) for name, file in files.items()}
    rows = {
        name: {
            "bytes": sizes[name],
            "of the checkpoint": sizes[name] / size(checkpoint, "*.safetensors"),
            "perplexity, ratio": told[name]["fidelity.perplexity_ratio"],
            "KL": told[name]["fidelity.kl_mean"],
            "same top": told[name]["fidelity.same_top"],
            "decode tok/s": median(rates[name]),
            "of fp32": ratio(rates, name, "fp32"),
        }
        for name in models
    }
    print(f"\n{checkpoint.name}, {told['fp32']['fidelity.tokens']} tokens measured; {machine()}\n")
    print_table(rows, {name: float((folder / SECONDS).read_text()) for name, folder in folders.items()})
    for name, file in files.items():
        types = weight_types(file)
        shares = ", ".join(f"{kind} {count / sum(types.values()):.1%}" for kind, count in types.items())
        print(f"\n- {name}: {shares} of the weights")
    if options.json:
        options.json.write_text(
            json.dumps({"checkpoint": checkpoint.name, "machine": machine(), "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
