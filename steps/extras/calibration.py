"""int4 weights from calibration (build_onnx_wrapper.calibration), an optional extra: what a build asks of it.

auto-round tries, layer by layer, which way each weight is best rounded, by what the layer then makes of texts. It
writes a checkpoint in the layout of GPTQ, of which onnxruntime-genai's builder takes the packed weights as they are.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steps.checkpoint.policy import link_files, replace_json
from steps.config.onnx import BuildOnnxWrapper
from steps.config.schema import ROOT, project_path
from steps.records.errors import StepError
from steps.records.files import hash_file


def calibrate(snapshot: Path, folder: Path, options: BuildOnnxWrapper, log: Path) -> dict[str, Any]:
    """Write the checkpoint in *snapshot* to *folder* with calibrated int4 weights; return what it was made with.

    All that the library says goes to the file *log*. Raises StepError with its last line when it fails.
    """
    assert options.calibration is not None
    made = asdict(options.calibration)
    settings = made | {"block_size": options.block_size, "symmetric": options.symmetric}
    if made["file"] is not None:
        settings["file"] = str(project_path(made["file"]))
        made["sha256"] = hash_file(project_path(made["file"]))
    rounded = folder.with_name(f"{folder.name}.rounded")
    command = [sys.executable, "-m", "steps.extras.auto_round_int4", str(snapshot), str(rounded), json.dumps(settings)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    log.write_text(f"{' '.join(command)}\n\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        msg = f"calibration failed: {lines[-1]} (all it said is in the run's {log.name})"
        raise StepError(msg)
    take_weights(rounded, snapshot, folder)
    return made | {"auto_round": version("auto-round"), "seconds": round(time.perf_counter() - started)}


def take_weights(rounded: Path, snapshot: Path, folder: Path) -> None:
    """Make *folder* with the weights of *rounded* and the other files of *snapshot*, as the checkpoint has them."""
    link_files(snapshot, folder)
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        for link in folder.glob(pattern):
            link.unlink()
        for file in rounded.glob(pattern):
            file.rename(folder / file.name)
    config, quantised = (json.loads((where / "config.json").read_text(encoding="utf-8")) for where in (folder, rounded))
    replace_json(folder / "config.json", config | {"quantization_config": quantised["quantization_config"]})
