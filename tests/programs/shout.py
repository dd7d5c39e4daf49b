"""A model that needs nothing: it answers in capitals."""

import mlflow
from mlflow.pyfunc import PythonModelContext


class Shout(mlflow.pyfunc.PythonModel):
    def predict(self, context: PythonModelContext, model_input: list[str], params: object = None) -> list[str]:
        return [text.upper() for text in model_input]


mlflow.models.set_model(Shout())
