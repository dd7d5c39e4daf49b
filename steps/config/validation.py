"""Check a composed configuration: return a usable Config, or name the first value that cannot be used."""

import importlib.util
import ipaddress
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from steps.config.entry_points import Monitor, Serve
from steps.config.schema import (
    CANDIDATES,
    RECIPE_KEYS,
    STEPS,
    BuildOnnxWrapper,
    Config,
    Evaluate,
    ExecutionProvider,
    Harness,
    Ladder,
    Model,
    Precision,
    Register,
    Source,
    project_path,
)
from steps.config.suggestions import nearest
from steps.config.values import flat_dict
from steps.evaluation.gates import Section, read_gates
from steps.evaluation.tasks import read_examples
from steps.records.errors import ConfigError
from steps.records.onnx_recipes import LADDER

EXTRAS = {
    "build_onnx_wrapper.calibration.samples": ("auto_round", "requirements-calibration.in"),
    "evaluate.harness.tasks": ("lm_eval", "requirements-lm-eval.txt"),
    "register.bom": ("cyclonedx", "requirements-supply-chain.txt"),
    "register.sign_key": ("model_signing", "requirements-supply-chain.txt"),
    "register.verify_key": ("model_signing", "requirements-supply-chain.txt"),
    "sweep.ray": ("ray", "requirements-ray.in"),
}
"""Keys that ask for an optional feature, the package that it needs, and the file that installs the package."""

DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
"""The names of torch's dtypes in which a checkpoint can be loaded, and `auto`: as it is stored."""

LARGEST = 2**31 - 1
"""No number of the configuration may be larger: what computes with them takes 32 bits, or adds them to a date."""

FOR_EACH_RECIPE = ("block_size", "accuracy_level")
"""Those that may also be given for all recipes that onnx=auto tries."""

ALGORITHMS = ("default", "rtn", "rtn_last", "k_quant", "k_quant_last", "k_quant_mixed")
"""What onnxruntime-genai's builder knows as algo_config, and can do without calibration."""

RESERVED_NAMES = r"(?i)champion|challenger|previous|latest|v?\d+|m-[0-9a-f]{32}|\.+"
"""Names that no registered model may have: aliases, versions, ids of logged models, parent folders."""


def to_config(composed: DictConfig) -> Config:
    """Return *composed* as a checked Config. Raises ConfigError, naming key and value."""
    # Not resolved, because an interpolation of a missing value would hide which key it is.
    missing = sorted(_missing_keys(OmegaConf.to_container(composed, resolve=False)))
    if missing:
        msg = f"no value for {', '.join(missing)}: give it with -P {missing[0]}=..."
        raise ConfigError(msg)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check(config)
    return config


def check(config: Config) -> None:
    """Raise ConfigError for the first value that has the right type and still cannot be used."""
    for key, value in flat_dict(config).items():
        for each in value if isinstance(value, list) else [value]:
            _check_plain(key, each)
    unknown = [step for step in config.steps if step not in STEPS]
    _require(bool(config.steps) and not unknown, "steps", config.steps, f"some of {', '.join(STEPS)}")
    _require(bool(config.question.strip()), "question", repr(config.question), "a question to ask each wrapper")
    _at_least(0, "seed", config.seed)
    _check_model(config.model)
    _at_least(0, "fetch_model.log_files_mb", config.fetch_model.log_files_mb)
    _one_of(DTYPES, "build_pipeline_wrapper.dtype", config.build_pipeline_wrapper.dtype)
    _at_least(1, "build_pipeline_wrapper.max_new_tokens", config.build_pipeline_wrapper.max_new_tokens)
    _check_onnx(config.build_onnx_wrapper)
    _check_calibration(config.build_onnx_wrapper, config.evaluate)
    _check_evaluate(config.evaluate)
    _check_harness(config.evaluate.harness)
    _check_gates_and_task(config.evaluate)
    if config.build_onnx_wrapper.ladder is not None:  # after evaluate, whose values it has if it is given none
        _check_what_ladder_asks(config.build_onnx_wrapper.ladder)
    _check_name(config.register.name)
    _check_register(config.register, config.evaluate_run_id)
    _at_least(1, "flow.jobs", config.flow.jobs)
    _at_least(1, "sweep.jobs", config.sweep.jobs)
    _check_serve(config.serve)
    named = re.fullmatch(r"models:/[^/@]+[/@][^/@]+", config.export.model) is not None
    _require(named, "export.model", config.export.model, "models:/<name>@<alias> or models:/<name>/<version>")
    _check_monitor(config.monitor)
    _check_extras(flat_dict(config))
    _one_of(("maximize", "minimize"), "sweep.direction", config.sweep.direction)


def _check_plain(key: str, value: object) -> None:
    """Raise ConfigError for a number or text that no part of the flow could store or compute with."""
    if isinstance(value, int | float):
        fits = math.isfinite(value) and abs(value) <= LARGEST
        _require(fits, key, value, f"a number from -{LARGEST} to {LARGEST}")
    elif isinstance(value, str):
        # A byte that is no UTF-8 arrives from the command line as half a character.
        _require(_is_unicode(value), key, repr(value), "text in UTF-8")


def _check_model(model: Model) -> None:
    if model.source is Source.hub:
        named = bool(model.repo_id and model.revision)
        _require(named, "model.repo_id", model.repo_id, "a repository and a revision")
        return
    _require(model.path is not None, "model.path", model.path, "the folder of a checkpoint")
    folder = project_path(str(model.path))
    # What is in it is a question of fetch_model's.
    _require(_is_folder(folder), "model.path", model.path, f"the folder of a checkpoint ({folder})")


def _check_onnx(onnx: BuildOnnxWrapper) -> None:
    given = {name: getattr(onnx, name) for name in RECIPE_KEYS}
    for name, value in given.items():
        if onnx.ladder is None:
            expected = "a value: only onnx=auto chooses one"
            _require(value is not None, f"build_onnx_wrapper.{name}", "null", expected)
        elif name not in FOR_EACH_RECIPE:
            expected = "null, because onnx=auto chooses it: name a recipe, such as onnx=int4_cpu, to set it"
            _require(value is None, f"build_onnx_wrapper.{name}", getattr(value, "value", value), expected)
    fits = onnx.block_size in (None, 16, 32, 64, 128, 256)
    _require(fits, "build_onnx_wrapper.block_size", onnx.block_size, "16, 32, 64, 128 or 256")
    _require(
        onnx.accuracy_level in (None, *range(5)), "build_onnx_wrapper.accuracy_level", onnx.accuracy_level, "0 to 4"
    )
    if onnx.algorithm is not None:
        _one_of(ALGORITHMS, "build_onnx_wrapper.algorithm", onnx.algorithm)
    for name in ("revision", "folder"):
        expected = "all or none of build_onnx_wrapper.repo_id, revision and folder, as onnx=prebuilt gives them"
        value = getattr(onnx, name)
        _require((value is None) == (onnx.repo_id is None), f"build_onnx_wrapper.{name}", value, expected)
    _at_least(1, "build_onnx_wrapper.max_tokens", onnx.max_tokens)
    if onnx.ladder is not None:
        _check_ladder(onnx.ladder, onnx.execution_provider)


def _check_ladder(ladder: Ladder, provider: ExecutionProvider) -> None:
    names = [recipe.name for recipe in LADDER]
    known = bool(ladder.recipes) and set(ladder.recipes) <= set(names)
    _require(known, "build_onnx_wrapper.ladder.recipes", ladder.recipes, f"some of {', '.join(names)}")
    expected = "a limit of onnx.fidelity.*, by which onnx=auto can choose: or name a recipe, such as onnx=int8_cpu"
    _require(bool(ladder.gates), "evaluate.gates", "without fidelity", expected)
    here = provider is ExecutionProvider.cpu
    expected = "cpu, where onnx=auto can measure: name a recipe, such as onnx=int4_cuda"
    _require(here, "build_onnx_wrapper.execution_provider", provider.value, expected)


def _check_what_ladder_asks(ladder: Ladder) -> None:
    key = "build_onnx_wrapper.ladder"
    for name, value in {"task": ladder.task, "text": ladder.text}.items():
        _require(value is None or _is_file(value), f"{key}.{name}", value, "an existing file")
    for name, least in {"limit": 1, "questions": 1, "context": 2, "seed": 0}.items():
        _at_least(least, f"{key}.{name}", getattr(ladder, name))
    try:
        read_examples(project_path(ladder.task), ladder.limit, ladder.scorer)
    except (ValueError, OSError) as error:
        msg = f"{key}.scorer={ladder.scorer} or {key}.task={ladder.task} cannot be used: {error}"
        raise ConfigError(msg) from error


def _check_calibration(onnx: BuildOnnxWrapper, evaluate: Evaluate) -> None:
    calibration, key = onnx.calibration, "build_onnx_wrapper.calibration"
    if calibration is None:
        return
    rounded = onnx.precision is Precision.int4 and onnx.repo_id is None
    _require(rounded, key, "given", "null, because only int4 weights that are built here are calibrated")
    for name in ("samples", "tokens", "iterations"):
        _at_least(1, f"{key}.{name}", getattr(calibration, name))
    if calibration.file is None:
        return
    path = project_path(calibration.file)
    _require(_is_file(path), f"{key}.file", calibration.file, f"an existing text file or task ({path})")
    judged = {project_path(name).resolve() for name in (evaluate.task, evaluate.fidelity.text) if name is not None}
    expected = "a file by which evaluate does not judge: the build would look better than it is"
    _require(path.resolve() not in judged, f"{key}.file", calibration.file, expected)
    if path.suffix == ".jsonl":
        try:
            read_examples(path, None, None)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error


def _check_evaluate(evaluate: Evaluate) -> None:
    task = project_path(evaluate.task)
    expected = f"an existing file, absolute or relative to the project ({task})"
    _require(_is_file(task), "evaluate.task", evaluate.task, expected)
    text = evaluate.fidelity.text
    _require(text is None or _is_file(text), "evaluate.fidelity.text", text, "an existing text file")
    for name, uri in evaluate.candidates.items():
        key = f"evaluate.candidates.{name}"
        fits = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None and name not in CANDIDATES
        _require(fits, key, uri, f"a name of A-Z a-z 0-9 _ -, other than {' and '.join(CANDIDATES)}")
        _require(bool(uri.strip()), key, repr(uri), "the URI of a model, such as models:/name/1")
    for key, value in {
        "max_tokens": evaluate.max_tokens,
        "limit": evaluate.limit,
        "timed_examples": evaluate.timed_examples,
        "contract_examples": evaluate.contract_examples,
        "cost.new_tokens": evaluate.cost.new_tokens,
        "cost.repeats": evaluate.cost.repeats,
        "cost.prompt_lengths": min(evaluate.cost.prompt_lengths, default=1),
        "cost.batches": min(evaluate.cost.batches, default=1),
    }.items():
        _at_least(1, f"evaluate.{key}", value)
    _at_least(1, "evaluate.fidelity.questions", evaluate.fidelity.questions)
    _at_least(2, "evaluate.fidelity.context", evaluate.fidelity.context)


def _check_harness(harness: Harness) -> None:
    path = harness.include_path
    folder = project_path(path) if path is not None else None
    expected = f"a folder of YAML files ({folder})"
    _require(folder is None or _is_folder(folder), "evaluate.harness.include_path", path, expected)
    _at_least(1, "evaluate.harness.limit", harness.limit)
    _at_least(0, "evaluate.harness.num_fewshot", harness.num_fewshot)


def _check_gates_and_task(evaluate: Evaluate) -> None:
    try:
        read_gates(evaluate.gates)
        read_examples(project_path(evaluate.task), evaluate.limit, evaluate.scorer)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def _check_extras(values: Mapping[str, object]) -> None:
    for key, (package, file) in EXTRAS.items():
        installed = not values.get(key) or importlib.util.find_spec(package) is not None
        _require(installed, key, values.get(key), f"{package} in this environment (pip install -r {file})")


def _check_name(name: str) -> None:
    fits = re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) is not None
    _require(fits, "register.name", name, "1 to 100 of A-Z a-z 0-9 . _ -")
    free = re.fullmatch(RESERVED_NAMES, name) is None
    expected = "a name that MLflow and this project do not reserve (champion, latest, v1, 1, ..)"
    _require(free, "register.name", name, expected)


def _check_register(register: Register, evaluate_run_id: str | None) -> None:
    margin = register.promote_margin
    _require(0 <= margin <= 1, "register.promote_margin", margin, "a share from 0 to 1")
    for key, path in {"sign_key": register.sign_key, "verify_key": register.verify_key}.items():
        expected = "the file of a key in PEM, absolute or relative to the project"
        _require(path is None or _is_file(path), f"register.{key}", path, expected)
    _at_least(1, "register.version", register.version)
    for key, chosen in {"rollback": register.rollback, "verify_key": register.verify_key}.items():
        alone = not chosen or not (evaluate_run_id or register.promote)
        _require(alone, f"register.{key}", chosen, "neither evaluate_run_id nor register.promote with it")


def _check_serve(serve: Serve) -> None:
    _require(bool(serve.model.strip()), "serve.model", repr(serve.model), "a model, such as models:/name@champion")
    _require(0 <= serve.port < 2**16, "serve.port", serve.port, "0 to 65535")
    safe = is_loopback(serve.host) or serve.api_key_env is not None
    expected = "127.0.0.1, or serve.api_key_env with it: whoever reaches another address needs a key"
    _require(safe, "serve.host", serve.host, expected)
    for key in ("max_body_bytes", "max_waiting"):
        _at_least(1, f"serve.{key}", getattr(serve, key))
    _at_least(0, "serve.grace", serve.grace)
    _require(0 <= serve.trace_share <= 1, "serve.trace_share", serve.trace_share, "a share from 0 to 1")
    for key in ("timeout", "follow_seconds"):
        _require(getattr(serve, key) > 0, f"serve.{key}", getattr(serve, key), "more than 0 seconds")


def _check_monitor(monitor: Monitor) -> None:
    fits = re.fullmatch(r"models:/[^/@]+(/\d+|@[^/@]+)", monitor.model) is not None
    _require(fits, "monitor.model", monitor.model, "models:/<name>@<alias> or models:/<name>/<version>")
    hours = monitor.window_hours
    _require(hours is None or hours > 0, "monitor.window_hours", hours, "more than 0 hours, or null")
    _at_least(1, "monitor.limit", monitor.limit)
    _at_least(0, "monitor.reask", monitor.reask)
    try:
        read_gates(monitor.gates, Section("monitor.gates"))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def is_loopback(host: str) -> bool:
    """Return whether *host* is this machine's own loopback, by name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _missing_keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing_keys(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == MISSING:
        yield prefix


def _is_file(path: str | Path) -> bool:
    """Return whether *path*, absolute or relative to the project, is a file."""
    return os.path.isfile(project_path(path))  # noqa: PTH113  Path raises for a name that is too long for any file


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  see above


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _one_of(known: Sequence[str], key: str, value: str) -> None:
    _require(value in known, key, value, f"one of {', '.join(known)}{nearest(value, known)}")


def _at_least(least: int, key: str, value: float | None) -> None:
    _require(value is None or value >= least, key, value, f"at least {least}")


def _require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        msg = f"{key}={value} cannot be used: expected {expected}"
        raise ConfigError(msg)
