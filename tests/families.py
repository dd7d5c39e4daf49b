"""Checkpoints of other families: random weights, but layers, tokenizers and templates of the real kinds.

llama     Llama 3's: byte-level tokens behind its split into words, a BOS token by post-processor, two end tokens
mistral   Mistral's: a sliding window; Metaspace before the first word, byte fallback, [INST] and no system role
qwen3     Qwen3's: tied embeddings, heads with norms of their own, byte-level tokens after NFC, ChatML, <think>
phi3_gqa  Phi-3's with two keys for four queries: a window; "▁" before every text, control tokens that eat white space
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

WINDOW = 64
"""Positions that a layer of the windowed families sees."""

CONTEXT = 512

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
LLAMA_3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CORPUS = [
    "What is the capital of Spain? The capital of Spain is Madrid.",
    'hello world, the quick brown fox jumps over the lazy dog {"name": "Ana", "age": 3}',
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen split a text before they look for tokens."""

LLAMA = """{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>

' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ \
'<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + \
message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
PHI3 = """{% for message in messages %}{{ '<|' + message['role'] + '|>
' + message['content'] + '<|end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""


def byte_level(control: Iterable[str], *, nfc: bool) -> Tokenizer:
    """Return a tokenizer whose every byte is a character of the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=not nfc))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    return tokenizer


def sentencepiece_like(control: Iterable[str], *, every_text: bool, rstrip: bool) -> Tokenizer:
    """Return a tokenizer that writes a space as "▁", and falls back to bytes.

    It puts "▁" before *every_text* between control tokens, otherwise before the first word alone. Control tokens
    swallow white space that follows them where *rstrip*.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if every_text:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    first = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in BYTES]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, rstrip=rstrip, normalized=False) for text in control])
    return tokenizer


@dataclass(frozen=True)
class Family:
    """One family: transformers' names for it, its tokenizer and template, and what is its own in its config.json.

    `ends`: the tokens that end an answer. `windowed`: whether a layer sees WINDOW positions only.
    """

    architecture: str
    make_tokenizer: Callable[[], Tokenizer]
    bos: str | None
    ends: tuple[str, ...]
    template: str
    options: dict[str, Any]

    @property
    def windowed(self) -> bool:
        """Whether a layer sees WINDOW positions only."""
        return "sliding_window" in self.options


def _llama_tokenizer() -> Tokenizer:
    control = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = byte_level(control, nfc=False)
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


def _qwen_tokenizer() -> Tokenizer:
    tokenizer = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), nfc=True)
    marks = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in marks])
    return tokenizer


def _mistral_tokenizer() -> Tokenizer:
    tokenizer = sentencepiece_like(("[INST]", "[/INST]"), every_text=False, rstrip=False)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


FAMILIES = {
    "llama": Family(
        "Llama",
        _llama_tokenizer,
        "<|begin_of_text|>",
        ("<|eot_id|>", "<|end_of_text|>"),
        LLAMA,
        {"rope_parameters": LLAMA_3_ROPE},
    ),
    "mistral": Family("Mistral", _mistral_tokenizer, "<s>", ("</s>",), MISTRAL, {"sliding_window": WINDOW}),
    "qwen3": Family(
        "Qwen3",
        _qwen_tokenizer,
        None,
        ("<|im_end|>", "<|endoftext|>"),
        CHATML,
        {"tie_word_embeddings": True, "head_dim": 32},
    ),
    "phi3_gqa": Family(
        "Phi3",
        lambda: sentencepiece_like(("<|endoftext|>", "<|end|>", *ROLES), every_text=True, rstrip=True),
        "<s>",
        ("<|end|>", "<|endoftext|>"),
        PHI3,
        {"sliding_window": WINDOW, "original_max_position_embeddings": CONTEXT},
    ),
}


def save_tokenizer(family: Family, folder: Path) -> Any:
    """Write the tokenizer's files of *family* to *folder*, and return transformers' view of it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=family.make_tokenizer(),
        bos_token=family.bos,
        eos_token=family.ends[0],
        pad_token=family.ends[-1],
        chat_template=family.template,
        model_max_length=CONTEXT,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_checkpoint(family: Family, folder: Path, **changes: Any) -> Path:
    """Write a whole checkpoint of *family* to *folder*, of 2 layers, with *changes* to its config; return *folder*."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = save_tokenizer(family, folder)
    ends = tokenizer.convert_tokens_to_ids(list(family.ends))
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        family.architecture.lower(),
        vocab_size=-(-len(tokenizer) // 64) * 64,  # filled up, as real ones are
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,  # larger than usual: varied text
        **{**tokens, **family.options, **changes},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nRandom weights.\n")
    return folder


def export_as_it_is(checkpoint: Path, work: Path) -> Path:
    """Return the fp32 export of *checkpoint* by onnxruntime-genai's own command, which completes nothing."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
    command += ["-o", str(work / "onnx"), "-p", "fp32", "-e", "cpu", "-c", str(work / "cache")]
    command += ["--extra_options", "hf_token=false", "windowed_kv_cache=false"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return work / "onnx"


def logits_of(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Return the logits of the fp32 ONNX model in *folder*, [position, vocabulary]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feeds: dict[str, npt.NDArray[np.generic]] = {
        "input_ids": np.array([tokens], dtype=np.int64),
        "attention_mask": np.ones((1, len(tokens)), dtype=np.int64),
    }
    decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), dtype=np.float32)
    feeds |= {each.name: empty for each in session.get_inputs() if each.name.startswith("past_key_values")}
    logits: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return logits
