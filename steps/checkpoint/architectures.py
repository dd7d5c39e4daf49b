"""Which architectures can become ONNX: asked before weights are downloaded or anything is built."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from steps.records.errors import StepError


@cache
def known_architectures() -> frozenset[str]:
    """Return the decoder-only architectures that onnxruntime-genai's builder exports, as config.json names them."""
    package = find_spec("onnxruntime_genai")
    assert package is not None
    assert package.submodule_search_locations is not None
    # The builder has no list of them: its code compares the name with one after the other.
    source = Path(package.submodule_search_locations[0]) / "models" / "builder.py"
    return frozenset(re.findall(r'architectures\[0\] == "(\w+ForCausalLM)"', source.read_text(encoding="utf-8")))


def require_known_architecture(folder: Path) -> None:
    """Raise StepError unless the checkpoint in *folder* is of an architecture that the builder knows."""
    path = folder / "config.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["architectures"]
        architecture = str(names[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        msg = f"{path} names no architecture ({error!r}): choose a checkpoint that save_pretrained wrote"
        raise StepError(msg) from error
    if architecture not in known_architectures():
        fact = f"onnxruntime-genai's builder does not know the architecture {architecture}"
        msg = f"{fact}: choose another model, or one that is ONNX already with -P onnx=prebuilt"
        raise StepError(msg)
