"""int4 weights by GPTQ, of gptqmodel: writes a checkpoint. Runs in an environment of its own, with the library.

    python benchmarks/by_gptqmodel.py CHECKPOINT TEXTS FOLDER BLOCK [--symmetric]

TEXTS is a JSON file of token ids. FOLDER gets the checkpoint in the layout of GPTQ: linear layers in 4 bits, blocks of
BLOCK, embedding and head as they were. `benchmarks.calibrated` calls this file.
"""

import json
import os
import sys
from pathlib import Path


def main(checkpoint: str, texts: str, folder: str, block: str, *flags: str) -> None:
    """Write *folder*, with the settings that the library has by default."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own choice on 2 cores, 1, is refused by itself
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=4, group_size=int(block), sym="--symmetric" in flags, offload_to_disk=False)
    model = GPTQModel.load(checkpoint, settings, dtype=torch.float32, device="cpu")
    ids = json.loads(Path(texts).read_text())
    model.quantize([{"input_ids": each, "attention_mask": [1] * len(each)} for each in ids], batch_size=8)
    model.save(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
