"""A random checkpoint as ONNX, as the flow builds it."""

from pathlib import Path

from steps.config.command_line import compose_config
from steps.onnx_build.export import build_onnx, recipe_of


def make_onnx(checkpoint: Path, work: Path, *overrides: str) -> Path:
    """Return the folder below *work* with what build_onnx_wrapper makes of *checkpoint*, made unless it is there.

    *overrides* are the flow's; without any it is what a user gets.
    """
    options = compose_config(list(overrides)).build_onnx_wrapper
    kind = f"{recipe_of(options).name}-{options.block_size}-{options.accuracy_level}"
    folder = work / f"{checkpoint.name}-{kind}"
    if not (folder / "model.onnx").exists():
        work.mkdir(parents=True, exist_ok=True)
        build_onnx(checkpoint, folder, recipe_of(options), options.execution_provider, work / f"{folder.name}.log")
    return folder
