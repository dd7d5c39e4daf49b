"""A fingerprint changes with what the result of a step depends on, and with nothing else."""

import ast
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from steps.config.command_line import compose_config
from steps.config.schema import ROOT, STEPS, Config
from steps.flow.fingerprint import Fingerprint, differences, fingerprint, movable, sources, sources_of


def names(step: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in sources_of(f"steps.{step}")}


def test_the_source_of_a_step_is_its_module_and_every_module_of_ours_that_it_imports() -> None:
    assert {"steps/evaluate.py", "steps/evaluation/gates.py", "steps/records/files.py"} <= names("evaluate")
    assert "steps/evaluation/statistics.py" in names("evaluate"), "imported by a module that evaluate imports"


def test_a_template_beside_an_imported_module_belongs_to_the_source() -> None:
    assert "steps/report/report.html.jinja" in names("evaluate")


def test_the_wrapper_that_travels_belongs_to_the_step_that_logs_it() -> None:
    assert "steps/wrappers/onnx_chat.py" in names("build_onnx_wrapper")
    assert "steps/wrappers/onnx_chat.py" not in names("build_pipeline_wrapper")


def test_every_file_of_the_package_that_travels_belongs_too_though_its_imports_are_relative() -> None:
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "steps/wrappers/onnx").rglob("*.py")}
    package = {name for name in package if not name.endswith("/__init__.py")}  # docstrings alone
    engine = {f"steps/wrappers/onnx/engine/{name}.py" for name in ("__main__", "scheduler")}
    assert engine < package <= names("build_onnx_wrapper")


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("evaluate", "register")])
def test_a_change_of_the_evaluation_touches_evaluate_and_register_alone(step: str) -> None:
    assert not [name for name in names(step) if name.startswith("steps/evaluation/")]


def test_a_build_whose_recipe_is_chosen_by_measuring_depends_on_how_fidelity_is_measured() -> None:
    auto, named = (fingerprint("build_onnx_wrapper", compose_config([f"onnx={it}"]), {}) for it in ("auto", "int4_cpu"))
    measured = {"steps/ladder/climb.py", "steps/evaluation/fidelity.py"}
    assert measured <= auto.sources.keys()
    assert not measured & named.sources.keys()


@pytest.mark.parametrize("step", STEPS)
def test_a_change_of_the_chain_or_the_documentation_touches_no_step(step: str) -> None:
    assert not names(step) & {"steps/main.py", "steps/flow/launch.py", "steps/flow/reuse.py", "README.md"}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of steps/ whose files may be edited, and of which fingerprints now tell."""
    shutil.copytree(ROOT / "steps", tmp_path / "steps", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("steps.flow.fingerprint.ROOT", tmp_path)
    return tmp_path / "steps"


def edited(files: Iterable[Path]) -> set[str]:
    """Return the steps that would run again after an edit of *files*."""
    before = {step: sources(step) for step in STEPS}
    for file in files:
        file.write_text(file.read_text(encoding="utf-8") + "\nEDITED = True\n", encoding="utf-8")
    return {step for step in STEPS if sources(step) != before[step]}


@pytest.mark.parametrize("room", ["config", "safety", "flow", "sweeps"])
def test_an_edit_of_a_file_that_computes_no_result_runs_no_step_again(copy: Path, room: str) -> None:
    assert edited((copy / room).glob("*.py")) == set()


def test_an_edit_of_the_hubs_errors_or_of_its_cache_runs_no_step_again(copy: Path) -> None:
    assert edited([copy / "checkpoint" / "hub_errors.py", copy / "checkpoint" / "hub_cache.py"]) == set()
    assert "fetch_model" in edited([copy / "checkpoint" / "hub.py"])


def test_an_edit_of_a_room_runs_again_the_steps_that_use_it(copy: Path) -> None:
    assert edited([copy / "evaluation" / "gates.py"]) == {"evaluate", "register"}
    assert edited([copy / "records" / "files.py"]) == set(STEPS)


def test_the_fingerprint_of_fetch_model_covers_at_most_ten_files() -> None:
    assert len(names("fetch_model")) <= 10


@pytest.mark.parametrize("step", STEPS)
def test_a_step_reads_no_part_of_the_configuration_that_its_fingerprint_leaves_out(step: str) -> None:
    tree = ast.parse((ROOT / "steps" / f"{step}.py").read_text())
    read = {
        ast.unparse(node).removeprefix("config.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("config.")
    }
    assert all(
        any(f"{key}.".startswith(f"{part}.") or part.startswith(f"{key}.") for part in STEPS[step].reads)
        for key in read - {"reuse"}  # what is measured anew has the same result
    )


CHANGES = {
    "fetch_model": ["fetch_model.log_files_mb=1"],
    "build_pipeline_wrapper": ["build_pipeline_wrapper.max_new_tokens=9", "question=Why?"],
    "build_onnx_wrapper": ["build_onnx_wrapper.block_size=64", "onnx=int8_cpu", "question=Why?"],
    "evaluate": ["evaluate.limit=9", "seed=9", "evaluate.gates.onnx_accuracy.min=0.5"],
    "register": ["register.name=other", "register.promote=true"],
}


@pytest.mark.parametrize("step", STEPS)
def test_a_value_changes_the_fingerprints_of_the_steps_that_read_it_and_no_others(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steps.flow.fingerprint.sources", lambda _step, **_: {})  # the same for all: it takes a second
    before = {each: fingerprint(each, compose_config([]), {}).value for each in STEPS}
    for change in CHANGES[step]:
        config = compose_config([change])
        changed = {each for each in STEPS if fingerprint(each, config, {}).value != before[each]}
        readers = {each for each in STEPS if change in CHANGES[each]} | {step}
        assert readers <= changed <= readers | ({"register"} if change.startswith("question") else set())


def test_the_same_facts_give_the_same_fingerprint() -> None:
    assert fingerprint("evaluate", compose_config([]), {}) == fingerprint("evaluate", compose_config([]), {})


def test_facts_read_back_as_they_were_written() -> None:
    facts = fingerprint("build_onnx_wrapper", compose_config([]), {})
    assert Fingerprint.from_json(facts.to_json()).value == facts.value


def test_a_changed_question_file_changes_evaluate_and_says_so(tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    line = '{"id": "1", "messages": [{"role": "user", "content": "Why?"}], "reference": "So."}'
    task.write_text(line)
    config = compose_config([f"evaluate.task={task}"])
    before = fingerprint("evaluate", config, {})
    task.write_text(f"{line} ")
    assert differences(before, fingerprint("evaluate", config, {})) == ["input task changed"]


def test_another_key_in_the_file_that_signs_registers_again(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("one")
    config = compose_config([])
    config.register.sign_key = str(key)  # the configuration refuses it without the extra that signs
    before = fingerprint("register", config, {})
    key.write_text("other")
    assert fingerprint("register", config, {}) != before


def test_differences_name_the_value_before_and_after() -> None:
    old = fingerprint("build_onnx_wrapper", compose_config([]), {})
    new = fingerprint("build_onnx_wrapper", compose_config(["build_onnx_wrapper.block_size=64"]), {})
    assert differences(old, new) == ["block_size 128 → 64"]


def test_differences_name_the_source_the_input_and_the_lock() -> None:
    old = Fingerprint("evaluate", {"a.py": "1"}, {}, {"build_onnx_wrapper": "1"}, "1")
    new = Fingerprint("evaluate", {"a.py": "2"}, {}, {"build_onnx_wrapper": "2"}, "2")
    assert differences(old, new) == ["a.py changed", "input build_onnx_wrapper changed", "requirements.txt changed"]


def hub_model(revision: str) -> Config:
    return compose_config(["model=hub", "model.repo_id=some/model", f"model.revision={revision}"])


def test_what_a_branch_gave_is_not_taken_for_what_it_gives_now() -> None:
    assert movable("fetch_model", hub_model("main")) == "model.revision=main is not a commit: it may have moved"
    assert movable("fetch_model", hub_model("0123456789" * 4)) is None
    assert movable("build_onnx_wrapper", hub_model("main")) is None
    prebuilt = movable("build_onnx_wrapper", compose_config(["onnx=prebuilt"]))
    assert prebuilt == "build_onnx_wrapper.revision=main is not a commit: it may have moved"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("models:/m-0123abcd", None),
        ("models:/capitals/3", None),
        (f"runs:/{'0' * 32}/model", None),
        (
            "models:/capitals@champion",
            "evaluate.candidates.old=models:/capitals@champion names no version: it may have moved",
        ),
        ("/home/me/model", "evaluate.candidates.old=/home/me/model names no version: it may have moved"),
    ],
)
def test_a_candidate_that_may_come_to_name_another_model_is_measured_again(uri: str, why: str | None) -> None:
    assert movable("evaluate", compose_config([f"+evaluate.candidates.old={uri}"])) == why


def test_another_candidate_or_text_is_another_evaluation(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time")
    before = fingerprint("evaluate", compose_config([]), {}).value
    one = fingerprint("evaluate", compose_config(["+evaluate.candidates.old=models:/capitals/3"]), {}).value
    read = fingerprint("evaluate", compose_config([f"evaluate.fidelity.text={text}"]), {}).value
    text.write_text("There was a king")
    assert (
        len({before, one, read, fingerprint("evaluate", compose_config([f"evaluate.fidelity.text={text}"]), {}).value})
        == 4
    )
