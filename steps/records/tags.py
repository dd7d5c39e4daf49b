"""The tags on which steps, flow and registry agree. Each is a tag of a run, unless it says otherwise."""

from mlflow.entities import Run

STEP = "step"
"""The step that made the run."""

PROCESS = "process"
"""The process that works on the run, in three words: machine, process id, start time."""

ERROR = "error"
"""Why the run failed, as one line."""

OUTPUT = "output."
"""The prefix of the tags that hold a step's outputs: `output.<name>` holds a URI."""

FINGERPRINT = "step.fingerprint"
"""The hash of everything that the run's result depends on, by which it is reused. Only complete runs have it."""

DIGEST = "digest"
"""The hash of the run's outputs; it stands for the run in the fingerprints of later steps."""

REUSED_FROM = "reused_from."
"""The prefix of the chain's tags that name the reused run of each step."""

SNAPSHOT_BYTES = "fetch_model.snapshot.bytes"
"""The metric of fetch_model that says how large the checkpoint is."""

RECIPE = "onnx.recipe"
"""Which recipe onnx=auto chose: on the run of build_onnx_wrapper, and on a registered version."""

CALIBRATED = "onnx.calibration"
"""By which library and texts int4 weights were rounded: on build_onnx_wrapper's run, and on a registered version."""

VERDICT = "verdict"
"""The verdict of evaluate's gates."""

GATES_DIGEST = "gates.sha256"
"""The hash of gates.json; on a run of evaluate and on a registered version."""

END_TOKENS = "end_tokens"
"""The ids of the tokens that end an answer, as a list in JSON: on the runs of both build steps."""

CONTENT = "model.sha256"
"""The hash of a logged model's files; on the run of a build step and on a registered version."""

REGISTERED_AS = "registered."
"""The prefix of register's tags that hold, by version number, the hash of the model's files."""


def outputs(run: Run) -> dict[str, str]:
    """Return the URIs that *run* hands over, by name."""
    return {key.removeprefix(OUTPUT): value for key, value in run.data.tags.items() if key.startswith(OUTPUT)}
