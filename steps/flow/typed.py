"""The `mlflow run` that the user typed, changed to run something else in the same way."""

import shlex
from pathlib import Path

import psutil

from steps.config.schema import ROOT
from steps.flow.provenance import provenance_tags
from steps.safety.secrets import without_credentials, without_secrets

REPLACED = {"-P", "--param-list", "-e", "--entry-point", "-v", "--version", "--run-id", "--run-name"}
"""The options of `mlflow run` that say what to run; the others say where and in which environment."""


def mlflow_run(*words: str) -> str | None:
    """Return a shell command that runs what *words* say, such as `-e serve`, or None if this is no `mlflow run`.

    Project, other options, and the commit if MLflow cloned the project, are those of the command above this process.
    """
    typed = _typed()
    if typed is None:
        return None
    uri, options, folder = typed
    if (folder / uri).resolve() != ROOT:
        options = ["-v", provenance_tags(0)["code.commit"], *options]
    return without_secrets(without_credentials(shlex.join(["mlflow", "run", uri, *options, *words])))


def _typed() -> tuple[str, list[str], Path] | None:
    """Return project, remaining options and working folder of the `mlflow run` above this process, or None."""
    for process in psutil.Process().parents():
        try:
            words, folder = process.cmdline(), Path(process.cwd())
        except psutil.Error:
            return None
        for at, word in enumerate(words[:-1]):
            if Path(word).name == "mlflow" and words[at + 1] == "run":
                return *split_options(words[at + 2 :]), folder
    return None


def split_options(words: list[str]) -> tuple[str, list[str]]:
    """Return the project's URI and the options not in REPLACED, from the arguments *words* of `mlflow run`."""
    uri, kept, rest = ".", [], iter(words)
    for word in rest:
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        if not word.startswith("-"):
            uri = word
            continue
        has_value = name == word and name != "--build-image"
        option = [word, next(rest, "")] if has_value else [word]
        if name not in REPLACED:
            kept += option
    return uri, kept
