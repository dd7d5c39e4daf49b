"""How both wrappers read a checkpoint: its files and no others, one set of end tokens, one policy of sampling.

End tokens: all that config.json, generation_config.json and the tokenizer name. Sampling: the likeliest token, unless
a request asks to sample; what else generation_config.json asks for is not applied.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps.checkpoint.manifest import needed_files
from steps.checkpoint.tokenizer_check import corrected_settings, own_tokenizer, read_json, read_settings
from steps.records.files import files_below

NEUTRAL: dict[str, object] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
}
"""What changes even the likeliest token in transformers, and the value with which it changes nothing."""

SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""What changes an answer that is sampled."""

PLAIN = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("max_length", "max_new_tokens", "use_cache", "transformers_version", "_from_model_config"),
)
"""What changes no answer here: both wrappers set the end tokens and the length themselves."""


def end_tokens(folder: Path) -> list[int]:
    """Return the ids of the tokens that end an answer, all that the checkpoint in *folder* names, without doubles.

    In this order: generation_config.json, config.json, the tokenizer's eos_token. Raises StepError for a file that
    cannot be read.
    """
    named: list[object] = []
    for file in (_generation_settings(folder), read_json(folder / "config.json")):
        ids = file.get("eos_token_id")
        named += ids if isinstance(ids, list) else [ids]
    token = read_settings(folder).get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    named.append(own_tokenizer(folder).token_to_id(text) if isinstance(text, str) else None)
    return list(dict.fromkeys(number for number in named if isinstance(number, int)))


def generation_config(folder: Path) -> dict[str, Any]:
    """Return the generation_config.json that says the policy for the checkpoint in *folder*."""
    stated = read_json(folder / "config.json") | _generation_settings(folder)
    ids = {key: stated[key] for key in ("bos_token_id", "pad_token_id") if stated.get(key) is not None}
    return {**ids, "eos_token_id": end_tokens(folder), "do_sample": False}


def neutral_options(folder: Path) -> dict[str, object]:
    """Return the arguments for transformers' generate that undo what generation_config.json in *folder* asks for."""
    return {key: NEUTRAL[key] for key in not_applied(folder) if key in NEUTRAL}


def not_applied(folder: Path) -> dict[str, object]:
    """Return the settings of generation_config.json in *folder* that would change an answer and are not applied."""
    found = _generation_settings(folder)
    asked = {key: value for key, value in found.items() if key not in PLAIN}
    return {key: value for key, value in asked.items() if value not in (None, False, NEUTRAL.get(key))}


def _generation_settings(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def link_files(snapshot: Path, folder: Path) -> None:
    """Make *folder* with links to the files of *snapshot* that belong to it, and `corrections` in place of theirs."""
    folder.mkdir(parents=True)
    for path in needed_files(snapshot):
        link = folder / path.relative_to(snapshot)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path.resolve())
    for name, content in corrections(snapshot).items():
        replace_json(folder / name, content)


def corrections(snapshot: Path) -> dict[str, dict[str, Any]]:
    """Return, by name, the files of *snapshot* as they must be for transformers to compute what the checkpoint means.

    Raises StepError where transformers cannot be made to follow its tokenizer.json.
    """
    found = {}
    config = read_json(snapshot / "config.json")
    if config.get("attn_logit_softcapping") is not None and "attn_implementation" not in config:
        # Gemma 2: the attention that transformers takes by itself leaves the cap out.
        found["config.json"] = config | {"attn_implementation": "eager"}
    if set(not_applied(snapshot)) - {*NEUTRAL, *SAMPLING}:
        # Stop strings, other ways to decode, time limits: no argument of generate undoes all of them.
        found["generation_config.json"] = generation_config(snapshot)
    if (settings := corrected_settings(snapshot)) is not None:
        found["tokenizer_config.json"] = settings
    return found


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write *content* to *path*; a link that is there is replaced, not followed."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def only_needed(snapshot: Path) -> Iterator[Path]:
    """Yield a folder with the files of *snapshot* that belong to it, corrected, and no others.

    It is *snapshot* itself where that is such a folder already: MLflow's `stop` reads the tokenizer from it later on.
    """
    if set(needed_files(snapshot)) == set(files_below(snapshot)) and not corrections(snapshot):
        yield snapshot
        return
    with tempfile.TemporaryDirectory() as work:
        link_files(snapshot, Path(work) / "checkpoint")
        yield Path(work) / "checkpoint"
