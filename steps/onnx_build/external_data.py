"""The data file of an ONNX model: its tensors, read and written a piece at a time."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper

MODEL = "model.onnx"


def mapped(folder: Path, tensor: TensorProto) -> npt.NDArray[Any]:
    """Return the array of *tensor*, which stands in the data file in *folder*; it is read when it is used."""
    external = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset = int(external.get("offset", 0))
    return np.memmap(folder / external["location"], dtype, "r", offset, tuple(tensor.dims))


def rewrite(folder: Path, model: ModelProto, changed: Mapping[str, npt.NDArray[Any]]) -> int:
    """Put *model* into *folder*, with the data that it still names; return by how many bytes its data are smaller.

    Tensors in *changed* get that array for their data. The new files are written beside the old, then put in their
    place; a few MB of the data are in memory at a time.
    """
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    (name,) = {entry.value for tensor in external for entry in tensor.external_data if entry.key == "location"}
    before: int = (folder / name).stat().st_size
    with tempfile.TemporaryDirectory(dir=folder) as work:
        with (folder / name).open("rb") as old, (Path(work) / name).open("wb") as new:
            _write_tensors(external, changed, old, new)
        onnx.save(model, Path(work) / MODEL)
        # The data first: with it, the old graph cannot be loaded, so that no half of a rewrite is taken for a model.
        for file in (name, MODEL):
            (Path(work) / file).replace(folder / file)
    return before - int((folder / name).stat().st_size)


def _write_tensors(
    tensors: list[TensorProto], changed: Mapping[str, npt.NDArray[Any]], old: BinaryIO, new: BinaryIO
) -> None:
    moved: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        entries = {entry.key: entry for entry in tensor.external_data}
        if tensor.name in changed:
            array = changed[tensor.name]
            entries["offset"].value, entries["length"].value = str(new.tell()), str(array.nbytes)
            new.write(array.tobytes())
            continue
        place = int(entries["offset"].value), int(entries["length"].value)
        if place not in moved:
            moved[place] = new.tell()
            _copy(old, new, *place)
        entries["offset"].value = str(moved[place])


def _copy(old: BinaryIO, new: BinaryIO, offset: int, length: int) -> None:
    old.seek(offset)
    while length:
        piece = old.read(min(length, 1 << 22))
        new.write(piece)
        length -= len(piece)
