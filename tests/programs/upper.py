"""A chat model that answers in capitals; its artifact `behaviour` says how it fails."""

import json
import os
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModelContext


class Upper(mlflow.pyfunc.PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        behaviour = json.loads(Path(context.artifacts["behaviour"]).read_text())
        if error := behaviour.get("cannot_load"):
            raise RuntimeError(error)
        self.dies_at = behaviour.get("dies_at")

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: object = None) -> list[object]:
        question = model_input["messages"].iloc[0][-1]["content"]
        if question == self.dies_at:
            os._exit(1)
        message = {"role": "assistant", "content": question.upper()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return [{"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}]


mlflow.models.set_model(Upper())
