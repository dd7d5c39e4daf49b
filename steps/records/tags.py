"""The tags on which steps, flow and registry agree: each is a tag of a run unless it says otherwise."""

from mlflow.entities import Run

STEP = "step"
"""Which step the run is of."""

PROCESS = "process"
"""Which process works on the run: machine, process id, and identity, in three words."""

ERROR = "error"
"""Why the run failed, in one line."""

OUTPUT = "output."
"""The prefix of the tags that hand over what a step made: `output.<name>` holds a URI."""

FINGERPRINT = "step.fingerprint"
"""What the run's result depends on, as one hash. Only a complete run has it: by this tag a run is found for reuse."""

DIGEST = "digest"
"""The hash of what the run hands over: it stands for the run in the fingerprints of later steps."""

REUSED_FROM = "reused_from."
"""The prefix of the chain's tags that name, by step, the run that was reused."""

SNAPSHOT_BYTES = "fetch_model.snapshot.bytes"
"""The metric of fetch_model that says how large the checkpoint is."""

RECIPE = "onnx.recipe"
"""Which recipe onnx=auto chose: on the run of build_onnx_wrapper, and on a registered version."""

VERDICT = "verdict"
"""What evaluate's gates decided."""

GATES_DIGEST = "gates.sha256"
"""The hash of gates.json: on a run of evaluate, and on a registered version."""

CONTENT = "model.sha256"
"""The hash of what a logged model holds: on the run of a build step, and on a registered version."""

REGISTERED_AS = "registered."
"""The prefix of register's tags that say, by version number, what the model held."""


def outputs(run: Run) -> dict[str, str]:
    """Return the URIs that *run* hands over, by name."""
    return {key.removeprefix(OUTPUT): value for key, value in run.data.tags.items() if key.startswith(OUTPUT)}
