"""Whether int4 weights from calibration keep more of a checkpoint than the builder's own, at equal size: one table.

    python -m benchmarks.calibrated CHECKPOINT [LIBRARY ...] [--python ENVIRONMENT/bin/python] [--work build/calibrated]

CHECKPOINT is a folder as `benchmarks.smollm2` makes it. Each LIBRARY (gptqmodel, auto_round) calibrates it with texts
that the checkpoint itself says, half of them as a user and half as plain text; `benchmarks.recipes` measures on other
texts. The builder then takes the packed weights, and makes the head, which a calibrated checkpoint has in full: in 4
bits or in 8. Without --python, this environment has the libraries: `pip install auto-round` goes with requirements.txt,
`pip install gptqmodel` needs an environment of its own. What is below --work is not made again. Prints Markdown.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import calibrators
from benchmarks.recipes import ROOT, SECONDS, TEXTS, Build, build, reference_logits, size, texts_of
from benchmarks.report import machine
from steps.records.onnx_recipes import Recipe

LIBRARIES = ("gptqmodel", "auto_round")
SAMPLED, TEXT_TOKENS = 96, 512
"""Calibration texts, and tokens of each."""

LIKELIEST = 200
"""Of how many tokens, the likeliest ones, the next one of a calibration text is drawn."""

INT4 = Recipe("int4", "int4")
HEAD_IN_8_BITS = Recipe("int4, head in 8 bits (`k_quant_last`)", "int4", algorithm="k_quant_last")
MIXED = Recipe("int4_mixed", "int4", algorithm="k_quant_mixed")


def sampled_texts(checkpoint: Path, file: Path) -> Path:
    """Return *file* with the token ids of texts that the checkpoint says, sampled unless it is there."""
    if file.exists():
        return file
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    user = str(tokenizer.apply_chat_template([{"role": "user", "content": "@@"}], tokenize=False)).partition("@@")[0]
    starts = (tokenizer(user, add_special_tokens=False)["input_ids"], tokenizer.encode(tokenizer.unk_token))
    texts: list[list[int]] = []
    for start in starts:
        ids = torch.tensor([start] * (SAMPLED // len(starts)))
        new, cache = ids, None
        # Not model.generate, which ends a text at an end token: all have the same length.
        with torch.inference_mode():
            while ids.shape[1] < TEXT_TOKENS:
                said = model(new, past_key_values=cache, use_cache=True)
                cache, logits = said.past_key_values, said.logits[:, -1]
                logits = logits.masked_fill(logits < logits.topk(LIKELIEST).values[:, -1:], -torch.inf)
                new = torch.multinomial(logits.softmax(-1), 1)
                ids = torch.cat([ids, new], 1)
        texts += ids.tolist()
    random.Random(0).shuffle(texts)
    file.write_text(json.dumps(texts))
    return file


def calibrated(library: str, checkpoint: Path, texts: Path, folder: Path, python: str, options: list[str]) -> Path:
    """Return *folder* with the checkpoint that *library* calibrated, made unless it is there."""
    if not folder.exists():
        started = time.perf_counter()
        command = [python, calibrators.__file__, library, str(checkpoint), str(texts), str(folder), *options]
        # Else the library would find this folder's modules before its own.
        subprocess.run(command, env=os.environ | {"PYTHONSAFEPATH": "1"}, stdout=subprocess.DEVNULL, check=True)
        (folder / SECONDS).write_text(str(time.perf_counter() - started))
    return folder


def main() -> None:
    """Print the table of the libraries named on the command line."""
    parser = argparse.ArgumentParser(description="Calibrate a checkpoint to int4, build it, and measure the builds.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=", ".join(LIBRARIES))
    parser.add_argument("--python", default=sys.executable, help="of an environment with the libraries")
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
    settings = [*(["--symmetric"] if options.symmetric else []), "--samples", str(options.samples)]
    settings += ["--iterations", str(options.iterations)]
    kind = "symmetric" if options.symmetric else "zero_points"
    for library in options.libraries or LIBRARIES:
        texts = sampled_texts(checkpoint, work / "texts.json")
        made = calibrated(library, checkpoint, texts, work / f"{library}_{kind}", options.python, settings)
        for recipe, head in ((INT4, "4 bits"), (HEAD_IN_8_BITS, "8 bits")):
            name = f"{library}, {kind.replace('_', ' ')}, head in {head}"
            folders[name] = build(recipe, made, work / f"{made.name}_{recipe.algorithm}")
            seconds[name] = f"{float((made / SECONDS).read_text()):.0f}"
    measured = texts_of(checkpoint, [ROOT / name for name in TEXTS], options.tokens, TEXT_TOKENS)
    reference = reference_logits(checkpoint, measured)
    print(f"\n{checkpoint.name}, {machine()}\n")
    print("| build | MB | of the checkpoint | perplexity, ratio | KL | same top | calibration s |")
    print(f"|---{'|---' * 6}|")
    for name, folder in folders.items():
        told, bytes_ = Build(folder).fidelity(measured, reference), size(folder, "model.onnx*")
        print(
            f"| {name} | {bytes_ / 1e6:.0f} | {bytes_ / size(checkpoint, '*.safetensors'):.3f}"
            f" | {told['fidelity.perplexity_ratio']:.3f} | {told['fidelity.kl_mean']:.4f}"
            f" | {told['fidelity.same_top']:.1%} | {seconds[name]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
