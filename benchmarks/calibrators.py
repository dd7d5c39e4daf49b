"""int4 weights from calibration: writes a checkpoint in the layout of GPTQ. Runs in an environment with the library.

    python benchmarks/calibrators.py LIBRARY CHECKPOINT TEXTS FOLDER [--symmetric] [--samples 64] [--iterations 50]

LIBRARY is `gptqmodel` or `auto_round`; TEXTS is the file of token ids that `benchmarks.calibrated` samples. FOLDER gets
the checkpoint: linear layers in 4 bits, blocks of 32, embedding and head as they were. `benchmarks.calibrated` calls
this file, because gptqmodel needs other versions of torch and transformers than requirements.txt has.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

BLOCK = 32

Ids = list[list[int]]


def by_gptqmodel(checkpoint: Path, texts: Ids, folder: Path, *, symmetric: bool) -> None:
    """Write *folder* by GPTQ, with the settings that the library has by default."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own choice on 2 cores, 1, is refused by itself
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=4, group_size=BLOCK, sym=symmetric, offload_to_disk=False)
    model = GPTQModel.load(str(checkpoint), settings, dtype=torch.float32, device="cpu")
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in texts], batch_size=8)
    model.save(str(folder))


def by_auto_round(checkpoint: Path, texts: Ids, folder: Path, *, symmetric: bool, iterations: int) -> None:
    """Write *folder* by signed gradient descent on the rounding: *iterations* steps a layer, of 4 texts each."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    batches = torch.utils.data.DataLoader([torch.tensor(ids) for ids in texts], batch_size=1)  # type: ignore[arg-type, var-annotated]
    work = folder.with_name(f"{folder.name}.parts")
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(checkpoint),
        scheme="W4A16",
        group_size=BLOCK,
        sym=symmetric,
        dataset=batches,
        nsamples=len(texts),
        seqlen=len(texts[0]),
        iters=iterations,
        batch_size=4,
        amp=False,  # bf16, which a CPU without it computes many times slower than fp32
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounding.quantize_and_save(str(work), format="auto_gptq")
    (written,) = work.glob("*")  # a folder that the library names
    written.rename(folder)
    shutil.rmtree(work)


def main() -> None:
    """Calibrate the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(description="Calibrate a checkpoint to int4.")
    parser.add_argument("library", choices=("gptqmodel", "auto_round"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--symmetric", action="store_true", help="no zero points")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=50, help="of auto_round")
    options = parser.parse_args()
    texts = json.loads(options.texts.read_text())[: options.samples]
    if options.library == "gptqmodel":
        by_gptqmodel(options.checkpoint, texts, options.folder, symmetric=options.symmetric)
    else:
        by_auto_round(
            options.checkpoint, texts, options.folder, symmetric=options.symmetric, iterations=options.iterations
        )


if __name__ == "__main__":
    main()
