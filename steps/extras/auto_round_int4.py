"""Writes a checkpoint with calibrated int4 weights, by auto-round, an optional extra: see requirements-calibration.in.

    python -m steps.extras.auto_round_int4 CHECKPOINT FOLDER SETTINGS

A process of its own, whose memory is given back. SETTINGS is JSON: `file`, `samples`, `tokens` and `iterations` of
`schema.Calibration`, with `block_size` and `symmetric` of the recipe.
"""

import gc
import json
import random
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steps import USUAL_THRESHOLD

DOCUMENT = "<|endoftext|>"
"""How a document begins; without it in the vocabulary, BOS."""

LIKELIEST = 200
"""top_k for sampling the model's own texts."""

BATCH = 4
"""Texts that one iteration looks at."""

Texts = list[list[int]]


def main(checkpoint: Path, folder: Path, settings: dict[str, Any]) -> None:
    """Write *folder*: linear layers in 4 bits in the layout of GPTQ, embedding and head as they were."""
    gc.set_threshold(*USUAL_THRESHOLD)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    # A CPU without bf16 computes it many times slower than fp32.
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    samples, tokens = settings["samples"], settings["tokens"]
    if settings["file"] is None:
        texts = own_texts(model, tokenizer, samples, tokens)
    else:
        texts = pieces(Path(settings["file"]), tokenizer, tokens)
    if len(texts) < samples:
        sys.exit(f"{settings['file']} has {len(texts)} pieces of {tokens} tokens, and calibration.samples={samples}")
    random.Random(0).shuffle(texts)  # noqa: S311  no secret
    round_weights(model, tokenizer, texts[:samples], folder, settings)


def pieces(file: Path, tokenizer: Any, tokens: int) -> Texts:  # noqa: ANN401  transformers has no types
    """Return the ids of *file*, a text or a task (.jsonl), in pieces of *tokens*; the rest at its end is left out."""
    ids = list(
        chain.from_iterable(tokenizer.encode(text, add_special_tokens=False) for text in _texts(file, tokenizer))
    )
    return [ids[at : at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)]


def _texts(file: Path, tokenizer: Any) -> Iterator[str]:  # noqa: ANN401
    if file.suffix != ".jsonl":
        yield file.read_text(encoding="utf-8")
        return
    for line in file.read_bytes().splitlines():
        if line.strip():
            example = json.loads(line)
            answer = {"role": "assistant", "content": str(example["reference"])}
            yield tokenizer.apply_chat_template([*example["messages"], answer], tokenize=False)


def own_texts(model: Any, tokenizer: Any, samples: int, tokens: int) -> Texts:  # noqa: ANN401
    """Return texts of *tokens* sampled from the model itself: half begin as a user's turn, half as a document.

    They go on after an end token, so that all have the same length.
    """
    user = str(tokenizer.apply_chat_template([{"role": "user", "content": "@@"}], tokenize=False)).partition("@@")[0]
    document = tokenizer.get_vocab().get(DOCUMENT, tokenizer.bos_token_id)
    starts = [tokenizer.encode(user, add_special_tokens=False), [document]]
    if document is None:
        del starts[1]
    texts: Texts = []
    for start in starts:
        ids = torch.tensor([start] * -(-samples // len(starts)))
        new, cache = ids, None
        with torch.inference_mode():
            while ids.shape[1] < tokens:
                said = model(new, past_key_values=cache, use_cache=True)
                cache, logits = said.past_key_values, said.logits[:, -1]
                kept = min(LIKELIEST, logits.shape[-1])
                logits = logits.masked_fill(logits < logits.topk(kept).values[:, -1:], -torch.inf)
                new = torch.multinomial(logits.softmax(-1), 1)
                ids = torch.cat([ids, new], 1)
        texts += ids[:, :tokens].tolist()
    return texts


def round_weights(model: Any, tokenizer: Any, texts: Texts, folder: Path, settings: dict[str, Any]) -> None:  # noqa: ANN401
    """Let auto-round choose how each weight of *model* is rounded, by *texts*; write *folder*."""
    from auto_round import AutoRound

    batches: Any = torch.utils.data.DataLoader([torch.tensor(ids) for ids in texts], batch_size=1)  # type: ignore[arg-type]
    rounding = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        group_size=settings["block_size"],
        sym=settings["symmetric"],
        dataset=batches,
        nsamples=len(texts),
        seqlen=len(texts[0]),
        iters=settings["iterations"],
        batch_size=min(BATCH, len(texts)),
        amp=False,
        device_map="cpu",
        enable_torch_compile=False,
    )
    work = folder.with_name(f"{folder.name}.parts")
    rounding.quantize_and_save(str(work), format="auto_gptq")
    (written,) = work.glob("*")  # a folder that the library names
    written.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
