"""A tokenizer of Phi-3's (that is, Llama's) kind, learnt from the training chats.

As in Phi-3: BPE with byte fallback, a space is "▁" and one is put in front of every stretch of text, control
tokens swallow the white space after them, the ids open with <unk>, <s>, </s> and the 256 bytes.
"""

# ruff: noqa: S106  # tokens of a language model, not passwords

import json
from collections.abc import Iterable
from pathlib import Path
from string import printable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
END = "<|end|>"
ASSISTANT = "<|assistant|>"
_FIRST_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
_CONTROL_TOKENS = [END_OF_TEXT, ASSISTANT, "<|system|>", END, "<|user|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of *vocab_size* tokens with BPE merges learnt from *texts*."""
    vocab, merges = _learn_merges(texts, vocab_size - len(_FIRST_TOKENS) - len(_CONTROL_TOKENS))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>")])
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False, rstrip=True)])
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=True) for token in _CONTROL_TOKENS[1:]]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        # left: generation continues from the last column of a batch
        padding_side="left",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with the chat template inside as Phi-3 has it."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 names a class of its own here, which version 4 does not know; both know this one
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _learn_merges(texts: Iterable[str], learnt: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return (vocabulary, merges) of which *learnt* tokens stand behind the first, fixed ones."""
    learner = Tokenizer(models.BPE())
    # Splitting keeps merges within words and apart from punctuation, as Llama's are. The finished tokenizer
    # then needs no splitting, and tokenizers that split for themselves (onnxruntime-genai's) come out alike.
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    alphabet = [character for character in printable if character.isprintable() and character != " "]
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=learnt, initial_alphabet=alphabet, show_progress=False)
    )
    state = json.loads(learner.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    vocab = {token: index for index, token in enumerate([*_FIRST_TOKENS, *tokens])}
    return vocab, [(left, right) for left, right in state["merges"]]
