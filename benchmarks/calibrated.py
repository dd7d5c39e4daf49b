"""Whether int4 weights from calibration keep more of a checkpoint than the builder's own, at equal size: one table.

    python -m benchmarks.calibrated CHECKPOINT [LIBRARY ...] [--python ENVIRONMENT/bin/python] [--work build/calibrated]

CHECKPOINT is a folder as `benchmarks.smollm2` makes it. Each LIBRARY (auto_round, gptqmodel) calibrates it with texts
that the checkpoint itself says; `benchmarks.recipes` measures on other texts. onnxruntime-genai's builder takes the
packed weights, and makes the head, which a calibrated checkpoint has in full: in 4 bits or in 8. auto_round needs
requirements-calibration.in; gptqmodel needs other versions than requirements.txt has, so --python names an environment
of its own. What is below --work is not made again. Prints Markdown.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import by_gptqmodel
from benchmarks.recipes import ROOT, SECONDS, TEXTS, Build, build, fidelity, reference_logits, size, texts_of
from benchmarks.report import machine
from steps.extras.auto_round_int4 import Texts, own_texts, round_weights
from steps.records.onnx_recipes import Recipe

LIBRARIES = ("auto_round", "gptqmodel")
SAMPLED, TEXT_TOKENS = 96, 512
"""Calibration texts, and tokens of each."""

INT4 = Recipe("int4", "int4")
HEAD_IN_8_BITS = Recipe("int4, head in 8 bits (`k_quant_last`)", "int4", algorithm="k_quant_last")
MIXED = Recipe("int4_mixed", "int4", algorithm="k_quant_mixed")


def loaded(checkpoint: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of *checkpoint*."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(checkpoint)


def sampled_texts(checkpoint: Path, file: Path) -> Texts:
    """Return the texts in *file*, which the checkpoint says unless the file is there."""
    if not file.exists():
        import torch

        torch.manual_seed(0)
        texts = own_texts(*loaded(checkpoint), SAMPLED, TEXT_TOKENS)
        random.Random(0).shuffle(texts)
        file.write_text(json.dumps(texts))
    found: Texts = json.loads(file.read_text())
    return found


def calibrated(library: str, checkpoint: Path, texts: Texts, folder: Path, options: argparse.Namespace) -> Path:
    """Return *folder* with the checkpoint that *library* calibrated, made unless it is there."""
    if folder.exists():
        return folder
    started = time.perf_counter()
    if library == "auto_round":
        settings = {"block_size": INT4.block_size, "symmetric": options.symmetric, "iterations": options.iterations}
        round_weights(*loaded(checkpoint), texts, folder, settings)
    else:
        some = folder.with_name(f"{folder.name}.json")
        some.write_text(json.dumps(texts))
        command = [options.python, by_gptqmodel.__file__, str(checkpoint), str(some), str(folder), str(INT4.block_size)]
        command += ["--symmetric"] if options.symmetric else []
        # Else the library would find the modules of this folder before its own.
        subprocess.run(command, env=os.environ | {"PYTHONSAFEPATH": "1"}, stdout=subprocess.DEVNULL, check=True)
    (folder / SECONDS).write_text(str(time.perf_counter() - started))
    return folder


def main() -> None:
    """Print the table of the libraries named on the command line."""
    parser = argparse.ArgumentParser(description="Calibrate a checkpoint to int4, build it, and measure the builds.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=", ".join(LIBRARIES))
    parser.add_argument("--python", default=sys.executable, help="of an environment with gptqmodel")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "calibrated", help="keeps what was made")
    parser.add_argument("--samples", type=int, default=64, help=f"how many of the {SAMPLED} texts a library gets")
    parser.add_argument("--iterations", type=int, default=50, help="of auto_round")
    parser.add_argument("--symmetric", action="store_true", help="no zero points")
    parser.add_argument("--tokens", type=int, default=8192, help="of the measurement")
    options = parser.parse_args()
    checkpoint: Path = options.checkpoint.resolve()
    work: Path = (options.work / checkpoint.name).resolve()
    work.mkdir(parents=True, exist_ok=True)
    folders = {
        recipe.name: build(recipe, checkpoint, work / recipe.algorithm) for recipe in (INT4, HEAD_IN_8_BITS, MIXED)
    }
    seconds = dict.fromkeys(folders, "")
    kind = "symmetric" if options.symmetric else "zero points"
    for library in options.libraries or LIBRARIES:
        texts = sampled_texts(checkpoint, work / "texts.json")[: options.samples]
        made = calibrated(library, checkpoint, texts, work / f"{library}_{kind.replace(' ', '_')}", options)
        for recipe, head in ((INT4, "4 bits"), (HEAD_IN_8_BITS, "8 bits")):
            name = f"{library}, {kind}, head in {head}"
            folders[name] = build(recipe, made, work / f"{made.name}_{recipe.algorithm}")
            seconds[name] = f"{float((made / SECONDS).read_text()):.0f}"
    measured = texts_of(checkpoint, [ROOT / name for name in TEXTS], options.tokens, TEXT_TOKENS)
    reference = reference_logits(checkpoint, measured)
    print(f"\n{checkpoint.name}, {machine()}\n")
    print("| build | MB | of the checkpoint | perplexity, ratio | KL | same top | calibration s |")
    print(f"|---{'|---' * 6}|")
    for name, folder in folders.items():
        told, bytes_ = fidelity(Build(folder), measured, reference), size(folder, "model.onnx*")
        print(
            f"| {name} | {bytes_ / 1e6:.0f} | {bytes_ / size(checkpoint, '*.safetensors'):.3f}"
            f" | {told['fidelity.perplexity_ratio']:.3f} | {told['fidelity.kl_mean']:.4f}"
            f" | {told['fidelity.same_top']:.1%} | {seconds[name]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
