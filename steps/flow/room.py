"""Whether this machine has the memory that a checkpoint needs, asked before anything is built from it."""

from steps.checkpoint.manifest import needed_files
from steps.config.schema import Config, Source, project_path
from steps.records.errors import StepError
from steps.safety.memory import total_memory

LEAST_PER_CHECKPOINT_BYTE, LEAST_FOR_LIBRARIES = 1.1, 0.6e9
"""The least that a step needs: the checkpoint's weights, and torch with transformers.

Below it no step can load the model; above it the builder may still run out (docs/reference/benchmarks.md).
"""


def require_memory(checkpoint_bytes: float, there: float | None = None) -> None:
    """Raise StepError, with both figures, if *there* bytes are too few for a checkpoint of *checkpoint_bytes*.

    *there* is by default the most memory that this process can get, within the limits of its container.
    """
    there = total_memory() if there is None else there
    needed = LEAST_PER_CHECKPOINT_BYTE * checkpoint_bytes + LEAST_FOR_LIBRARIES
    if there < needed:
        fact = f"this model needs at least {needed / 1e9:.1f} GB of memory, and {there / 1e9:.1f} GB are allowed here"
        msg = f"{fact}: raise the limit of the container, or choose a smaller model"
        raise StepError(msg)


def require_memory_for(config: Config) -> None:
    """Raise StepError if the configured model cannot fit. A hub's model has a known size only after fetch_model."""
    folder = project_path(str(config.model.path))
    local = config.model.source is Source.local and folder.is_dir()
    require_memory(sum(file.stat().st_size for file in needed_files(folder)) if local else 0)
