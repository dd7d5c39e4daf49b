"""Runs an export's example before the folder appears, and compares its token ids with the wrapper's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException

from steps.records.errors import StepError
from steps.wrappers.onnx.tokenizer import ChatTokenizer

PROGRAM = Path(__file__).with_name("rehearse.py")

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Recorded:
    """The `question` that the build was asked, and its `answer`."""

    question: str
    answer: str


def rehearse_example(folder: Path, recorded: Recorded, label: str) -> str:
    """Run the example in *folder*, an export of *label*, with the recorded question; return its answer.

    Raises StepError if it fails, says nothing, or reads a conversation as other token ids than the wrapper.
    """
    chosen = dict(readable(folder / "model", recorded.question))
    conversations = [json.loads(text) for text in chosen]
    command = [sys.executable, "-P", str(PROGRAM), str(folder / "example.py")]
    text = json.dumps(conversations)
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        msg = f"the example of {label} fails here ({last[:300]}): use -e serve for this model"
        raise StepError(msg)
    made = json.loads(done.stdout.splitlines()[-1])
    for conversation, ids in zip(conversations, made["prompts"], strict=True):
        if ids != chosen[json.dumps(conversation)]:
            fact = f"onnxruntime-genai reads {conversation} as other token ids than the wrapper of {label}"
            msg = f"{fact}, so the example would ask another question: use -e serve for this model"
            raise StepError(msg)
    if not made["answer"].strip():
        msg = f"the example of {label} answers {recorded.question!r} with {made['answer']!r}: build it again"
        raise StepError(msg)
    return str(made["answer"])


def readable(model: Path, question: str) -> Iterator[tuple[str, list[int]]]:
    """Yield conversations (as JSON) that the wrapper of *model* takes, and their token ids; *question* is the first."""
    tokenizer = ChatTokenizer(model)
    for conversation in conversations_with(question):
        try:
            yield json.dumps(conversation), tokenizer.encode_chat(conversation)
        except MlflowException:  # many templates have no system role
            if len(conversation) == 1:
                raise


def conversations_with(question: str) -> list[Conversation]:
    """Return *question* alone, after a system message, and after a turn with text that templates treat in many ways."""
    asked = {"role": "user", "content": question}
    hard = {"role": "user", "content": ' "Ñandú" \\n <b>&amp;</b>\n\n日本 {{ x }} \U0001f600 '}
    answered = {"role": "assistant", "content": " It is\tso. "}
    return [[asked], [{"role": "system", "content": "Be brief.\n"}, asked], [hard, answered, asked]]
