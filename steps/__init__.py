"""The entry points, and the rooms of code that they share, in the order in which data passes.

    main, sweep    run the chain once; once for every combination of values
    fetch_model, build_pipeline_wrapper, build_onnx_wrapper, evaluate, register    the steps
    serve, export, monitor    what follows: the champion served, exported, watched

    checkpoint     a model's files, complete, from a folder or a hub
    onnx_build     from a checkpoint to a folder that onnxruntime-genai runs
    wrappers       code that travels inside the logged model
    logged_models  a logged model: what it holds, in a process of its own, as a language model
    ladder         onnx=auto: builds recipes until one keeps the fidelity gates
    measurement    asks, times and compares loaded candidates
    evaluation     questions, scores, statistics, gates: numbers only
    report         pages, plots and tables
    registry       versions, aliases, promotion, model card
    serving        a registered model behind OpenAI's API
    exporting      a version as a folder and an archive, checked
    monitoring     live requests, held against the version's evaluation
    sweeps         the trials of a sweep
    extras         optional features

    flow           how a step becomes a run
    config         what can be configured
    safety         processes, locks, outages, secrets
    records        names on which files agree

docs/architecture.md says which room may import which.
"""

import gc
import os
import sys

USUAL_THRESHOLD = gc.get_threshold()
"""For a process whose garbage holds weights: after its imports, it has to collect as usual."""
# Importing transformers creates many objects and no garbage. Looking for it after every 700 of them takes a seventh of
# the time.
gc.set_threshold(10_000)
# Before any library is imported, because each reads its switches at import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Wait 0 + 4 + 8 + 16 + 32 s for a tracking server that does not answer. MLflow's own 7 tries take four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
if not sys.stderr.isatty():
    # Not a terminal: progress bars would fill the log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
