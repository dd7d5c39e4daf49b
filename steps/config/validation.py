"""Check a composed configuration: return a usable Config, or name the first value that cannot be used."""

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping

from omegaconf import MISSING, DictConfig, OmegaConf

from steps.config.entry_points_validation import check_export, check_monitor, check_serve
from steps.config.onnx_validation import check_calibration, check_onnx, check_what_ladder_asks
from steps.config.refusal import at_least, is_file, is_folder, is_text, is_unicode, one_of, require
from steps.config.schema import (
    CANDIDATES,
    STEPS,
    Config,
    Evaluate,
    Harness,
    Model,
    Register,
    Source,
    project_path,
)
from steps.config.values import flat_dict
from steps.evaluation.gates import read_gates
from steps.evaluation.scoring import SCORERS
from steps.evaluation.tasks import read_task
from steps.records.errors import ConfigError

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
    require(bool(config.steps) and not unknown, "steps", config.steps, f"some of {', '.join(STEPS)}")
    require(bool(config.question.strip()), "question", repr(config.question), "a question to ask each wrapper")
    at_least(0, "seed", config.seed)
    _check_model(config.model)
    at_least(0, "fetch_model.log_files_mb", config.fetch_model.log_files_mb)
    one_of(DTYPES, "build_pipeline_wrapper.dtype", config.build_pipeline_wrapper.dtype)
    at_least(1, "build_pipeline_wrapper.max_new_tokens", config.build_pipeline_wrapper.max_new_tokens)
    check_onnx(config.build_onnx_wrapper)
    check_calibration(config.build_onnx_wrapper, config.evaluate)
    _check_evaluate(config.evaluate)
    _check_harness(config.evaluate.harness)
    _check_gates_and_task(config.evaluate)
    if config.build_onnx_wrapper.ladder is not None:  # after evaluate, whose values it has if it is given none
        check_what_ladder_asks(config.build_onnx_wrapper.ladder)
    _check_name(config.register.name)
    _check_register(config.register, config.evaluate_run_id)
    at_least(1, "flow.jobs", config.flow.jobs)
    at_least(1, "sweep.jobs", config.sweep.jobs)
    check_serve(config.serve)
    check_export(config.export)
    check_monitor(config.monitor)
    _check_extras(flat_dict(config))
    one_of(("maximize", "minimize"), "sweep.direction", config.sweep.direction)


def _check_plain(key: str, value: object) -> None:
    """Raise ConfigError for a number or text that no part of the flow could store or compute with."""
    if isinstance(value, int | float):
        fits = math.isfinite(value) and abs(value) <= LARGEST
        require(fits, key, value, f"a number from -{LARGEST} to {LARGEST}")
    elif isinstance(value, str):
        # A byte that is no UTF-8 arrives from the command line as half a character.
        require(is_unicode(value), key, repr(value), "text in UTF-8")


def _check_model(model: Model) -> None:
    if model.source is Source.hub:
        named = bool(model.repo_id and model.revision)
        require(named, "model.repo_id", model.repo_id, "a repository and a revision")
        return
    require(model.path is not None, "model.path", model.path, "the folder of a checkpoint")
    folder = project_path(str(model.path))
    # What is in it is a question of fetch_model's.
    require(is_folder(folder), "model.path", model.path, f"the folder of a checkpoint ({folder})")


def _check_evaluate(evaluate: Evaluate) -> None:
    task = project_path(evaluate.task)
    expected = f"an existing file, absolute or relative to the project ({task})"
    require(is_file(task), "evaluate.task", evaluate.task, expected)
    text = evaluate.fidelity.text
    require(text is None or is_text(text), "evaluate.fidelity.text", text, "an existing text file in UTF-8")
    one_of(tuple(SCORERS), "evaluate.scorer", evaluate.scorer)
    for name, uri in evaluate.candidates.items():
        key = f"evaluate.candidates.{name}"
        fits = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None and name not in CANDIDATES
        require(fits, key, uri, f"a name of A-Z a-z 0-9 _ -, other than {' and '.join(CANDIDATES)}")
        require(bool(uri.strip()), key, repr(uri), "the URI of a model, such as models:/name/1")
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
        at_least(1, f"evaluate.{key}", value)
    at_least(1, "evaluate.fidelity.questions", evaluate.fidelity.questions)
    at_least(2, "evaluate.fidelity.context", evaluate.fidelity.context)


def _check_harness(harness: Harness) -> None:
    path = harness.include_path
    folder = project_path(path) if path is not None else None
    expected = f"a folder of YAML files ({folder})"
    require(folder is None or is_folder(folder), "evaluate.harness.include_path", path, expected)
    at_least(1, "evaluate.harness.limit", harness.limit)
    at_least(0, "evaluate.harness.num_fewshot", harness.num_fewshot)


def _check_gates_and_task(evaluate: Evaluate) -> None:
    try:
        read_gates(evaluate.gates)
        read_task(project_path(evaluate.task), evaluate.scorer)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def _check_extras(values: Mapping[str, object]) -> None:
    for key, (package, file) in EXTRAS.items():
        installed = not values.get(key) or importlib.util.find_spec(package) is not None
        require(installed, key, values.get(key), f"{package} in this environment (pip install -r {file})")


def _check_name(name: str) -> None:
    fits = re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) is not None
    require(fits, "register.name", name, "1 to 100 of A-Z a-z 0-9 . _ -")
    free = re.fullmatch(RESERVED_NAMES, name) is None
    expected = "a name that MLflow and this project do not reserve (champion, latest, v1, 1, ..)"
    require(free, "register.name", name, expected)


def _check_register(register: Register, evaluate_run_id: str | None) -> None:
    margin = register.promote_margin
    require(0 <= margin <= 1, "register.promote_margin", margin, "a share from 0 to 1")
    for key, path in {"sign_key": register.sign_key, "verify_key": register.verify_key}.items():
        expected = "the file of a key in PEM, absolute or relative to the project"
        require(path is None or is_file(path), f"register.{key}", path, expected)
    at_least(1, "register.version", register.version)
    for key, chosen in {"rollback": register.rollback, "verify_key": register.verify_key}.items():
        if chosen and (evaluate_run_id or register.promote):
            msg = f"register.{key} cannot be combined with evaluate_run_id or register.promote: leave those out"
            raise ConfigError(msg)


def _missing_keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing_keys(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == MISSING:
        yield prefix
