"""The signatures that the wrapper is logged with."""

from mlflow.models import ModelSignature
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema


def chat_signature() -> ModelSignature:
    """Return the signature of interface=chat: MLflow's llm/v1/chat, with the fields that are served here."""
    served = ("messages", "temperature", "max_tokens", "n", "stream", "top_p", "top_k")
    columns = [column for column in CHAT_MODEL_INPUT_SCHEMA.inputs if column.name in served]
    anything = AnyType()
    columns += [
        ColSpec(anything, "stop", required=False),  # a string or a list of strings
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(anything, "response_format", required=False),
        ColSpec(anything, "tools", required=False),
        ColSpec(anything, "tool_choice", required=False),
        ColSpec(DataType.boolean, "parallel_tool_calls", required=False),
        ColSpec(DataType.long, "max_completion_tokens", required=False),
        ColSpec(DataType.boolean, "logprobs", required=False),
        ColSpec(DataType.long, "top_logprobs", required=False),
        ColSpec(anything, "chat_template_kwargs", required=False),
    ]
    signature = ModelSignature(inputs=Schema(columns), outputs=CHAT_MODEL_OUTPUT_SCHEMA)
    # With this flag MLflow passes requests to predict unchanged. Without it, MLflow drops fields that it does not
    # know (max_token=5 would be ignored, not refused), and rejects a table in which one row leaves out an integer,
    # and every stop that is a single string.
    signature._is_signature_from_type_hint = True
    return signature


def prompt_signature() -> ModelSignature:
    """Return the signature of interface=prompt: a column of prompts to strings, sampling options as params."""
    options = [
        ParamSpec("max_tokens", DataType.long, None),  # None: model_config decides
        ParamSpec("temperature", DataType.double, 0.0),
        ParamSpec("top_p", DataType.double, 1.0),
        ParamSpec("top_k", DataType.long, 0),
        ParamSpec("seed", DataType.long, 0),
        ParamSpec("stop", DataType.string, [], shape=(-1,)),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(options),
    )
