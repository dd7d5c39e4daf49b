"""A chat model that always says what is in its artifact `answer`."""

from pathlib import Path

import mlflow
from mlflow.pyfunc import PythonModelContext


class Echo(mlflow.pyfunc.PythonModel):
    def load_context(self, context: PythonModelContext) -> None:
        self.text = Path(context.artifacts["answer"]).read_text()

    def predict(self, context: PythonModelContext, model_input: object, params: object = None) -> list[object]:
        return [{"choices": [{"message": {"role": "assistant", "content": self.text}}]}]


mlflow.models.set_model(Echo())
