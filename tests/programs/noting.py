"""A chat model that notes what it is asked; its artifact `behaviour` says where, and what it says of its prompts.

`log`: the file of notes. `tells`: the number of prompt tokens, by question. `child_holds`: bytes of memory that a
process below it holds.
"""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModelContext

CHILD = "import sys; held = b'x' * int(sys.argv[1]); print(flush=True); input()"


class Noting(mlflow.pyfunc.PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        self.behaviour = json.loads(Path(context.artifacts["behaviour"]).read_text())
        if size := self.behaviour["child_holds"]:
            command = [sys.executable, "-c", CHILD, str(size)]
            self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.child.stdout is not None
            self.child.stdout.readline()

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: object = None) -> list[object]:
        chats = [[dict(message) for message in chat] for chat in model_input["messages"]]
        with Path(self.behaviour["log"]).open("a") as log:
            log.write(json.dumps(chats) + "\n")
        return [self.answer(chat[-1]["content"]) for chat in chats]

    def answer(self, question: str) -> dict[str, object]:
        usage = {"completion_tokens": 1, "prompt_tokens": self.behaviour["tells"].get(question)}
        return {"choices": [{"message": {"role": "assistant", "content": "Madrid"}}], "usage": usage}


mlflow.models.set_model(Noting())
