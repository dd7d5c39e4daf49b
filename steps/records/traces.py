"""Traces: the names on which the server, which writes them, and monitor, which reads them, agree.

Names beginning with gen_ai, error and http are those of OpenTelemetry's semantic conventions.
"""

import unicodedata
from collections import Counter

OPERATION, MODEL = "gen_ai.operation.name", "gen_ai.request.model"
"""`chat` or `text_completion`; the name of the registered model."""

MAX_TOKENS, TEMPERATURE = "gen_ai.request.max_tokens", "gen_ai.request.temperature"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
"""Of each choice: stop, length, tool_calls, cancelled, refused, failed or lost."""

FIRST_TOKEN = "gen_ai.server.time_to_first_token"  # noqa: S105  a duration
"""In seconds; of streams only."""

ERROR, STATUS = "error.type", "http.response.status_code"
"""The code of the error, such as invalid_value, and the status, which says whose error it is. An answer has neither."""

CANCELLED = 499
"""The status, as nginx has it, of a request that its client, or the end of the server, cancelled."""

LATE = "timeout"
"""The code of a request that ran out of time."""

INPUT, OUTPUT = "mlflow.spanInputs", "mlflow.spanOutputs"
"""The texts, with `serve.trace_text` only, in OpenAI's form and under MLflow's names: its UI shows these as a chat."""

TOOLS = "gen_ai.tool.definitions"
"""The tools that the model was told of, with `serve.trace_text` only."""

FIELD = "slm.refused.field"
"""The field of the request that is wrong."""

SCRIPT = "slm.prompt.script"
"""The script of the prompt's letters, such as latin."""

PROMPT_HASH, ANSWER_HASHES = "slm.prompt.hash", "slm.answer.hashes"
"""Of the prompt's tokens, and of each choice's text: equal if they are, within one run of the server.

The key of the hash is random and never written, so nobody can find out a text by trying.
"""

SERVER = "slm.server"
"""The run of the server: hashes with the same value of it have the same key."""

VERSION = "version"
"""The tag that names the version that answered."""

SAMPLE = 2_000
"""How many characters of a prompt are looked at for its script."""


def experiment_name(model: str) -> str:
    """Return the name of the experiment that holds the traces of the registered *model*."""
    return f"{model} traces"


def script_of(text: str) -> str:
    """Return the script that most letters of *text* belong to, by Unicode's names: latin, cyrillic, cjk; or none."""
    letters = Counter(unicodedata.name(each, "unknown").split()[0].lower() for each in text[:SAMPLE] if each.isalpha())
    return letters.most_common(1)[0][0] if letters else "none"
