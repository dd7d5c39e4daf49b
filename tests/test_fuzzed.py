"""What strangers write, made up by hypothesis: each input is taken, or refused with one line that is ours.

    SLM_FUZZ_CASES=20000 pytest tests/test_fuzzed.py

The variable says how many cases each test makes up at random. Without it there are 100, the same ones every time.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from steps.checkpoint import checks
from steps.checkpoint.manifest import Manifest
from steps.checkpoint.tokenizer_check import require_template
from steps.checkpoint.weights_check import require_fitting_weights
from steps.config.command_line import translate
from steps.evaluation.tasks import read_task
from steps.records.errors import ConfigError, StepError
from steps.records.files import File
from steps.wrappers.onnx.fields import CHAT_FIELDS, check_chat_fields
from steps.wrappers.onnx.messages import read_messages
from steps.wrappers.onnx.request import read_request
from steps.wrappers.onnx.tools.formats import FORMATS
from steps.wrappers.onnx.tools.request import read_tools
from steps.wrappers.onnx.tools.template import ToolSupport

fuzzed = settings(
    max_examples=int(os.environ.get("SLM_FUZZ_CASES", "100")),
    derandomize="SLM_FUZZ_CASES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TEXT = st.text(st.characters(), max_size=30)  # half characters too
NUMBER = st.one_of(st.integers(), st.floats(), st.sampled_from([2**31, 2**63, -(2**63) - 1, 1e308]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inside: st.one_of(st.lists(inside, max_size=4), st.dictionaries(TEXT, inside, max_size=4)),
    max_leaves=8,
)


def fields(*names: str) -> st.SearchStrategy[dict[str, object]]:
    """Make objects with some of *names*, each with any value."""
    return st.dictionaries(st.one_of(st.sampled_from(names), TEXT), JSON, max_size=6)


WORD = st.one_of(
    st.sampled_from(["--overrides", "--question", "--evaluate.limit", "--cfg", "--multirun", "-m", "--", "=", "+a=b"]),
    TEXT,
    st.builds("{}={}".format, st.sampled_from(["question", "seed", "steps", "++x"]), TEXT),
)


@fuzzed
@given(st.lists(WORD, max_size=6))
def test_a_command_line_is_translated_or_refused_in_one_line(arguments: list[str]) -> None:
    try:
        overrides, flags = translate(arguments)
    except ConfigError as error:
        assert str(error)
    else:
        assert all(isinstance(each, str) for each in [*overrides, *flags])


@fuzzed
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_any_text_is_a_value_that_hydra_reads(text: str) -> None:
    try:
        overrides, _flags = translate(["--question", text])
    except ConfigError as error:
        assert "***" in str(error)  # it looks like a secret
        return
    (parsed,) = OverridesParser.create().parse_overrides(overrides)
    value = parsed.value()
    assert value is None or isinstance(value, str | int | float | bool | list | dict) or str(value)


MESSAGE = fields("role", "content", "name", "type", "tool_calls", "tool_call_id")
EXAMPLE = st.fixed_dictionaries(
    {"id": JSON, "messages": st.one_of(JSON, st.lists(MESSAGE, max_size=3)), "reference": JSON},
    optional={"scorer": JSON, "choices": JSON},
)
LINE = st.one_of(
    st.binary(max_size=60),
    st.one_of(JSON, EXAMPLE).map(lambda value: json.dumps(value).encode()),
)


@fuzzed
@given(st.lists(LINE, max_size=3))
def test_a_task_file_is_read_or_refused_with_file_and_line(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as work:
        path = Path(work, "task.jsonl")
        path.write_bytes(b"\n".join(lines))
        try:
            assert read_task(path)
        except ValueError as error:
            assert str(error).startswith(str(path))


ROWS = st.builds(
    lambda some, messages: some | messages,
    fields(*CHAT_FIELDS),
    st.one_of(st.just({}), st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)})),
)


@fuzzed
@given(ROWS)
def test_a_chat_request_is_read_or_refused_as_the_caller_s_mistake(row: dict[str, object]) -> None:
    try:
        check_chat_fields(row)
        support = ToolSupport(FORMATS[0], in_system=False, has_calls=True)
        read_messages(row, support)
        request = read_request(row, [1, 2, 3], 4096, 16, read_tools(row, support))
    except MlflowException as error:
        assert error.error_code == "INVALID_PARAMETER_VALUE"
        error.message.encode()
    else:
        assert 1 <= request.max_tokens <= 4093


CONFIG = st.builds(
    lambda base, more: base | more,
    st.sampled_from([{}, {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}]),
    fields(
        *("architectures", "model_type", "auto_map", "quantization_config", "rope_scaling", "rope_parameters"),
        *("vocab_size", "eos_token_id", "bos_token_id", "pad_token_id", "layer_types", "sliding_window"),
        *("max_position_embeddings", "num_hidden_layers", "hidden_size", "num_attention_heads", "dtype"),
    ),
)
CHECKS: list[Callable[[Path], object]] = [*checks.FOR_ANY, *checks.FOR_THE_BUILDER, require_template]


@fuzzed
@given(CONFIG, fields("chat_template", "eos_token", "tokenizer_class", "added_tokens_decoder"), fields("eos_token_id"))
def test_a_checkpoint_s_configuration_is_taken_or_refused(
    config: dict[str, object], tokenizer: dict[str, object], generation: dict[str, object]
) -> None:
    with tempfile.TemporaryDirectory() as work:
        names = ("config.json", "tokenizer_config.json", "generation_config.json")
        for name, content in zip(names, (config, tokenizer, generation), strict=True):
            Path(work, name).write_text(json.dumps(content))
        for check in CHECKS:
            try:
                check(Path(work))
            except StepError as error:
                assert str(error)


@fuzzed
@given(st.one_of(st.binary(max_size=40), JSON.map(lambda value: json.dumps(value).encode())), st.integers(0, 2**64 - 1))
def test_the_header_of_weights_is_read_or_refused(header: bytes, length: int) -> None:
    with tempfile.TemporaryDirectory() as work:
        Path(work, "config.json").write_text("{}")
        for size in (len(header), length):
            Path(work, "model.safetensors").write_bytes(size.to_bytes(8, "little") + header)
            with pytest.raises(StepError):
                require_fitting_weights(Path(work))


FILES = st.lists(st.builds(File, TEXT, st.integers(min_value=0), TEXT), max_size=4).map(tuple)


@fuzzed
@given(st.builds(Manifest, TEXT, TEXT, TEXT, st.none() | TEXT, FILES))
def test_a_manifest_comes_back_as_it_was_written(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest
