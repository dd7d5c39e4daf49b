"""Check what build_onnx_wrapper is asked for: the recipe, the ladder of onnx=auto, the calibration."""

from steps.config.onnx import RECIPE_KEYS, BuildOnnxWrapper, ExecutionProvider, Ladder, Precision
from steps.config.refusal import at_least, is_file, is_text, one_of, require
from steps.config.schema import Evaluate, project_path
from steps.evaluation.scoring import SCORERS
from steps.evaluation.tasks import read_task
from steps.records.errors import ConfigError
from steps.records.onnx_recipes import LADDER

FOR_EACH_RECIPE = ("block_size", "accuracy_level")
"""Those that may also be given for all recipes that onnx=auto tries."""

ALGORITHMS = ("default", "rtn", "rtn_last", "k_quant", "k_quant_last", "k_quant_mixed")
"""What onnxruntime-genai's builder knows as algo_config, and can do without calibration."""


def check_onnx(onnx: BuildOnnxWrapper) -> None:
    """Raise ConfigError for a recipe, ladder or prebuilt folder that cannot be used."""
    given = {name: getattr(onnx, name) for name in RECIPE_KEYS}
    for name, value in given.items():
        if onnx.ladder is None:
            expected = "a value: only onnx=auto chooses one"
            require(value is not None, f"build_onnx_wrapper.{name}", "null", expected)
        elif name not in FOR_EACH_RECIPE:
            expected = "null, because onnx=auto chooses it; to set it, name a recipe, such as onnx=int4_cpu"
            require(value is None, f"build_onnx_wrapper.{name}", getattr(value, "value", value), expected)
    fits = onnx.block_size in (None, 16, 32, 64, 128, 256)
    require(fits, "build_onnx_wrapper.block_size", onnx.block_size, "16, 32, 64, 128 or 256")
    require(
        onnx.accuracy_level in (None, *range(5)), "build_onnx_wrapper.accuracy_level", onnx.accuracy_level, "0 to 4"
    )
    if onnx.algorithm is not None:
        one_of(ALGORITHMS, "build_onnx_wrapper.algorithm", onnx.algorithm)
    for name in ("revision", "folder"):
        expected = "all or none of build_onnx_wrapper.repo_id, revision and folder, as onnx=prebuilt gives them"
        value = getattr(onnx, name)
        require((value is None) == (onnx.repo_id is None), f"build_onnx_wrapper.{name}", value, expected)
    at_least(1, "build_onnx_wrapper.max_tokens", onnx.max_tokens)
    if onnx.ladder is not None:
        _check_ladder(onnx.ladder, onnx.execution_provider)


def _check_ladder(ladder: Ladder, provider: ExecutionProvider) -> None:
    names = [recipe.name for recipe in LADDER]
    known = bool(ladder.recipes) and set(ladder.recipes) <= set(names)
    require(known, "build_onnx_wrapper.ladder.recipes", ladder.recipes, f"some of {', '.join(names)}")
    if not ladder.gates:
        fact = "evaluate.gates has no limit on onnx.fidelity.*, by which onnx=auto chooses"
        msg = f"{fact}: add one, or name a recipe, such as onnx=int8_cpu"
        raise ConfigError(msg)
    here = provider is ExecutionProvider.cpu
    expected = "cpu, because onnx=auto measures on this machine; for CUDA name a recipe, such as onnx=int4_cuda"
    require(here, "build_onnx_wrapper.execution_provider", provider.value, expected)


def check_what_ladder_asks(ladder: Ladder) -> None:
    """Raise ConfigError if fidelity cannot be measured on what *ladder* names. evaluate is checked before."""
    key = "build_onnx_wrapper.ladder"
    require(is_file(ladder.task), f"{key}.task", ladder.task, "an existing file")
    require(ladder.text is None or is_text(ladder.text), f"{key}.text", ladder.text, "an existing text file in UTF-8")
    one_of(tuple(SCORERS), f"{key}.scorer", ladder.scorer)
    for name, least in {"limit": 1, "questions": 1, "context": 2, "seed": 0}.items():
        at_least(least, f"{key}.{name}", getattr(ladder, name))
    try:
        read_task(project_path(ladder.task), ladder.scorer)
    except (ValueError, OSError) as error:
        msg = f"{key}.task={ladder.task} cannot be used: {error}"
        raise ConfigError(msg) from error


def check_calibration(onnx: BuildOnnxWrapper, evaluate: Evaluate) -> None:
    """Raise ConfigError for a calibration that cannot be used, or by whose texts *evaluate* judges."""
    calibration, key = onnx.calibration, "build_onnx_wrapper.calibration"
    if calibration is None:
        return
    if onnx.precision is not Precision.int4 or onnx.repo_id is not None:
        fact = f"{key} is only for int4 weights that are built here"
        msg = f"{fact}: choose onnx=int4_calibrated, or set it to null"
        raise ConfigError(msg)
    for name in ("samples", "tokens", "iterations"):
        at_least(1, f"{key}.{name}", getattr(calibration, name))
    if calibration.file is None:
        return
    path = project_path(calibration.file)
    require(is_file(path), f"{key}.file", calibration.file, f"an existing text file or task ({path})")
    judged = {project_path(name).resolve() for name in (evaluate.task, evaluate.fidelity.text) if name is not None}
    expected = "a file by which evaluate does not judge: the build would look better than it is"
    require(path.resolve() not in judged, f"{key}.file", calibration.file, expected)
    if path.suffix == ".jsonl":
        try:
            read_task(path)
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from error
