"""build_pipeline_wrapper: reads the snapshot of fetch_model; writes a model of MLflow's transformers flavour.

Task llm/v1/chat: Chat Completions in and out. It is logged by path, so that the weights are copied, not loaded. Then
the step loads the logged model, and has it answer a question.
"""

import json
from contextlib import suppress
from pathlib import Path

import mlflow
import yaml
from huggingface_hub import ModelCard

from steps.checkpoint.policy import end_tokens, neutral_options, not_applied, only_needed
from steps.checkpoint.snapshot import present
from steps.config.schema import BuildPipelineWrapper, Config
from steps.logged_models.logged_model import logged_folder, record_model
from steps.logged_models.requirements import locked
from steps.records.errors import StepError
from steps.records.step import Inputs, Outputs
from steps.records.tags import END_TOKENS


def run(config: Config, inputs: Inputs) -> Outputs:
    """Wrap the snapshot of fetch_model, and see the model answer."""
    with present(inputs["fetch_model"]) as snapshot:
        if asked := not_applied(snapshot):
            said = ", ".join(f"{key}={value}" for key, value in asked.items())
            print(f"generation_config.json asks for {said}: not applied; answers are greedy unless a request samples")
        with only_needed(snapshot) as folder:
            uri = log_pipeline(folder, config.question, config.build_pipeline_wrapper)
        mlflow.set_tag(END_TOKENS, json.dumps(end_tokens(snapshot)))
    with logged_folder(uri) as folder:
        digest = record_model(uri, folder)
        mlflow.log_dict({"question": config.question, "answer": ask(folder, config.question)}, "answer.json")
    return Outputs({"model_uri": uri}, digest)


def log_pipeline(folder: Path, question: str, options: BuildPipelineWrapper) -> str:
    """Log the checkpoint in *folder* as a chat model on the active run; return its `models:/` URI."""
    info = mlflow.transformers.log_model(
        str(folder),
        name="pipeline",
        task="llm/v1/chat",
        torch_dtype=None if options.dtype == "auto" else options.dtype,
        # MLflow renders the chat template and tokenises the result like any text. A tokenizer that puts a BOS token
        # before every text, as those of Llama and Mistral do, would add a second one to the template's own.
        model_config={
            "max_new_tokens": options.max_new_tokens,
            "do_sample": False,
            "add_special_tokens": False,
            "eos_token_id": end_tokens(folder),
            **neutral_options(folder),
        },
        input_example=chat_request(question),
        pip_requirements=locked("mlflow", "transformers", "torch", "tokenizers", "huggingface-hub", "jinja2", "psutil"),
        # Given, even if empty: MLflow would ask the hub for one otherwise.
        model_card=card_of(folder),
    )
    return str(info.model_uri)


def card_of(folder: Path) -> ModelCard:
    """Return the model card of the checkpoint in *folder*: an empty one where it has none that can be read."""
    card = folder / "README.md"
    with suppress(ValueError, yaml.YAMLError):  # the front matter is not always what the hub asks for
        if card.is_file():
            found: ModelCard = ModelCard.load(card, ignore_metadata_errors=True)
            return found
    return ModelCard("---\n{}\n---\n")


def chat_request(question: str) -> dict[str, object]:
    """Return the Chat Completions request that asks *question*."""
    return {"messages": [{"role": "user", "content": question}]}


def ask(folder: Path, question: str) -> str:
    """Load the chat model in *folder* as a user would, and return its answer. Raises StepError when it gives none."""
    response = mlflow.pyfunc.load_model(str(folder)).predict(chat_request(question))
    answer = response[0]["choices"][0]["message"]["content"]
    if not isinstance(answer, str) or not answer.strip():
        msg = (
            f"the logged pipeline answers {question!r} with {answer!r}: check the snapshot's chat template and weights"
        )
        raise StepError(msg)
    return answer


if __name__ == "__main__":
    from steps.flow.entry import execute

    execute("build_pipeline_wrapper")
