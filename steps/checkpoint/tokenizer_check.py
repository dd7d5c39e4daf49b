"""Whether transformers reads the tokenizer that the checkpoint holds, and what makes it do so.

tokenizer.json says how text becomes ids. transformers takes the class that tokenizer_config.json names, and some of
these put rules of their own in the place of the file's: then every answer is of another model.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from steps.records.errors import StepError, in_one_line

TEXTS = (
    "hello world, the capital of Spain?",
    " a  b   c    d     e ",
    "\n\n\n lines\r\n\r\n\t\tand tabs \t\n ",
    "é e\u0301 ﬁ Å Å ñ ﷺ ½ 東京、서울, हिन्दी, العربية",
    "👩‍👩‍👧‍👦 🏴 👍🏽 ☺️ ᚠᛇᚻ 𐍈 ꙮ 𓀀 \u200b \u00a0 \ufeff \x07",
    "▁▁ <0x41> <0xE6><0x9D> � Ġ Ċ",
    "1234567890 3.14 1,000,000 don't I'LL we've x'y def f(x):\n    return x**2\n",
)
"""Text on which tokenizers of different kinds differ: white space, accents, bytes, digits, other scripts."""

ADDED = 100
"""How many of the added tokens are tried inside a text."""

LFS = "version https://git-lfs.github.com"
"""How a Git LFS pointer begins."""

MAKE = "write it with AutoTokenizer.from_pretrained(<its base model>).save_pretrained(<this folder>)"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in the JSON file at *path*. Raises StepError when it is a Git LFS pointer, or no object."""
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith(LFS):
            msg = f"{path} is a Git LFS pointer, not the file: fetch it with git lfs pull"
            raise StepError(msg)
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read ({in_one_line(error)}): save the checkpoint again"
        raise StepError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} holds no JSON object: save the checkpoint again"
        raise StepError(msg)
    return content


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what tokenizer_config.json in *folder* says; nothing where there is none.

    As in transformers, the tokens that special_tokens_map.json names take precedence in older saves.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    older = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in settings and older.is_file():
        named = read_json(older)
        settings |= {key: _text(value) for key, value in named.items() if key.endswith("_token") and value}
    return settings


def _text(token: object) -> object:
    """Return what *token* is in a text: settings hold it as such, or as an object with that as its content."""
    return token.get("content") if isinstance(token, dict) else token


def own_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of tokenizer.json in *folder*, without its truncation and padding.

    Raises StepError when there is none that can be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        found = next((name for name in ("tokenizer.model", "vocab.json") if (folder / name).is_file()), None)
        fact = f"{folder} holds no tokenizer.json" + (f", only {found}" if found else " and no other tokenizer")
        msg = f"{fact}: {MAKE}"
        raise StepError(msg)
    read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        msg = f"{path} is no tokenizer ({in_one_line(error)}): {MAKE}"
        raise StepError(msg) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Return the tokenizer in *folder* as transformers loads it, without code of the checkpoint's.

    Raises whatever the class does that the checkpoint names.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def corrected_settings(folder: Path) -> dict[str, Any] | None:
    """Return the tokenizer_config.json with which transformers reads as tokenizer.json in *folder* says.

    None where it does so with the one that is there. Raises StepError where it never does.
    """
    fault = _fault(folder)
    if fault is None:
        return None
    settings = {key: value for key, value in read_settings(folder).items() if key != "auto_map"}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # it has no rules of its own
    with tempfile.TemporaryDirectory() as work:
        for path in folder.iterdir():
            if path.suffix in (".json", ".jinja", ".model", ".txt"):
                (Path(work) / path.name).symlink_to(path.resolve())
        (Path(work) / "tokenizer_config.json").unlink(missing_ok=True)
        (Path(work) / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        if (still := _fault(Path(work))) is not None:
            fact = (
                f"transformers reads {folder} otherwise than its tokenizer.json says, whatever class is named ({still})"
            )
            msg = f"{fact}: choose another model"
            raise StepError(msg)
    name = read_settings(folder).get("tokenizer_class")
    print(f"tokenizer_class={name} reads otherwise than tokenizer.json ({fault}): both wrappers follow tokenizer.json")
    return settings


def _fault(folder: Path) -> str | None:
    """Return the first text that transformers reads otherwise than tokenizer.json in *folder*, or None."""
    own = own_tokenizer(folder)
    try:
        theirs = load_tokenizer(folder)
    except Exception as error:  # noqa: BLE001  whatever the class that is named does
        return in_one_line(error)[:150]
    added = [token.content for token in own.get_added_tokens_decoder().values()][:ADDED]
    for text in (*TEXTS, *(f"a {token} b{token}c" for token in added)):
        ids = own.encode(text, add_special_tokens=False).ids
        found = theirs.encode(text, add_special_tokens=False)
        if found != ids:
            return f"{text!r} becomes {found[:6]}..., not {ids[:6]}..."
        said, meant = theirs.decode(ids, clean_up_tokenization_spaces=False), own.decode(ids, skip_special_tokens=False)
        if said != meant:
            return f"{meant[:40]!r} comes back as {said[:40]!r}"
    return None


def require_tokenizer(folder: Path) -> None:
    """Raise StepError unless *folder* holds a tokenizer that can be followed, and no larger than the embedding."""
    own = own_tokenizer(folder)
    corrected_settings(folder)
    rows = read_json(folder / "config.json").get("vocab_size")
    added = read_settings(folder).get("added_tokens_decoder", {})
    listed = [int(number) for number in added if str(number).isdecimal()] if isinstance(added, dict) else []
    largest = max([*own.get_vocab(with_added_tokens=True).values(), *listed])
    if isinstance(rows, int) and largest >= rows:
        fact = f"the tokenizer in {folder} gives ids up to {largest}, and config.json has vocab_size={rows}"
        msg = f"{fact}: save the model after resize_token_embeddings({largest + 1})"
        raise StepError(msg)


def require_template(folder: Path) -> None:
    """Raise StepError unless *folder* holds a chat template that renders a question."""
    template: Any = read_settings(folder).get("chat_template")
    if (path := folder / "chat_template.jinja").is_file():
        template = path.read_text(encoding="utf-8")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        template = next((each.get("template") for each in named if each.get("name") == "default"), None)
    if not isinstance(template, str) or not template.strip():
        fact = f"{folder} has no chat template, as base models have none"
        msg = f"{fact}: choose the instruct model, or put the template it was tuned with into chat_template.jinja"
        raise StepError(msg)
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast  # which has no types
    names = {key: _text(value) for key, value in read_settings(folder).items() if key in ("bos_token", "eos_token")}
    own = own_tokenizer(folder)
    try:
        tokenizer = made(tokenizer_object=own, chat_template=template, **names)
        asked = [{"role": "user", "content": "capital"}]
        text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever the template raises
        msg = f"the chat template in {folder} renders no question ({in_one_line(error)}): correct it"
        raise StepError(msg) from error
    if "capital" not in text:
        msg = f"the chat template in {folder} leaves out what the user says: correct it"
        raise StepError(msg)
