"""What passed becomes a version, once, with its history; what is refused changes nothing."""

import hashlib
import json
import sqlite3
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.command_line import compose_config
from steps.config.schema import Config
from steps.flow.reuse import damage_of
from steps.records.errors import ConfigError, StepError
from steps.records.tags import GATES_DIGEST
from steps.registry.aliases import changing, make_champion, number_with
from tests.conftest import do_step, last_run, program, run
from tests.registry.models import OTHER_SIGNATURE, artifact, built, evaluated, fetched, registered

REFERENCES = ["yes"] * 60


@pytest.fixture
def fetch(store: str) -> Run:
    return fetched()


@pytest.fixture
def pipeline(fetch: Run, tmp_path: Path) -> Run:
    return built(tmp_path, "Yes!", fetch)


def config(evaluate: Run | None, *overrides: str) -> Config:
    runs = [f"evaluate_run_id={evaluate.info.run_id}"] if evaluate else []
    return compose_config(["register.name=echo", *runs, *overrides])


def versions() -> list[str]:
    found = MlflowClient().search_model_versions("name='echo'")
    return sorted(str(version.version) for version in found)


def aliases() -> dict[str, str | None]:
    return {alias: number_with("echo", alias) for alias in ("challenger", "champion", "previous")}


def test_each_candidate_is_a_version_with_tags_a_card_and_its_run(store: str, pipeline: Run, tmp_path: Path) -> None:
    onnx = built(tmp_path, "yes")
    evaluate = evaluated(tmp_path, pipeline, onnx, REFERENCES)
    do_step("register", config(evaluate))
    client = MlflowClient()
    assert versions() == ["1", "2"]
    version = client.get_model_version("echo", "2")
    assert version.run_id == onnx.info.run_id
    assert version.description.startswith("# echo: onnx")
    assert 'load_model("models:/echo/2")' in version.description
    assert version.tags["model.sha256"] == onnx.data.tags["model.sha256"]
    assert version.tags["gates.sha256"] == evaluate.data.tags[GATES_DIGEST]
    stated = {key: version.tags[key] for key in ("wrapper", "model.location", "model.revision", "model.licence")}
    assert list(stated.values()) == ["onnx", "someone/echo", "a" * 40, "mit"]
    assert (version.tags["onnx.precision"], version.tags["onnx.block_size"]) == ("int4", "32")
    assert client.get_model_version("echo", "1").tags["wrapper"] == "pipeline"
    assert "`@champion` is the version to use" in client.get_registered_model("echo").description
    assert aliases() == {"challenger": "2", "champion": "2", "previous": None}
    (response,) = mlflow.pyfunc.load_model("models:/echo@champion").predict({"messages": []})
    assert response["choices"][0]["message"]["content"] == "yes"


def test_a_registration_is_not_reused_when_its_version_is_another_model_by_now(
    store: str, pipeline: Run, tmp_path: Path
) -> None:
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    (first,) = mlflow.search_runs(filter_string="tags.step = 'register'", output_format="list")
    assert damage_of(first) is None
    MlflowClient().delete_registered_model("echo")
    assert damage_of(first) == "models:/echo/1 is no longer registered"
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "no"), REFERENCES)))
    assert damage_of(first) == "models:/echo/2 is another model by now"


def test_the_same_content_is_the_same_version_and_new_content_a_challenger(
    store: str, pipeline: Run, tmp_path: Path
) -> None:
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    assert versions() == ["1", "2"]
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "no"), REFERENCES)))
    assert versions() == ["1", "2", "3"]
    assert aliases() == {"challenger": "3", "champion": "2", "previous": None}


def test_a_version_whose_files_are_damaged_is_registered_again(store: str, pipeline: Run, tmp_path: Path) -> None:
    first = built(tmp_path, "yes")
    do_step("register", config(evaluated(tmp_path, pipeline, first, REFERENCES)))
    damage(first)
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    assert versions() == ["1", "2", "3"]


def test_a_version_that_is_not_ready_is_registered_again_though_its_run_is_the_same(
    store: str, pipeline: Run, tmp_path: Path
) -> None:
    evaluate = evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)
    do_step("register", config(evaluate))
    with sqlite3.connect(tmp_path / "store.db") as database:
        database.execute("UPDATE model_versions SET status = 'FAILED_REGISTRATION' WHERE version = 2")
    do_step("register", config(evaluate))
    assert versions() == ["1", "2", "3"]
    assert aliases()["challenger"] == "3"


def damage(one: Run) -> None:
    """Change a file of the model that the run *one* logged."""
    model = MlflowClient().get_logged_model(one.data.tags["output.model_uri"].removeprefix("models:/"))
    code = next(Path(model.artifact_location).rglob("echo.py"))
    code.write_text(code.read_text().replace("Echo", "Ecce"))


@pytest.mark.slow
def test_a_promotion_that_was_asked_for_and_refused_is_an_error(store: str, pipeline: Run, tmp_path: Path) -> None:
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    worse = evaluated(tmp_path, pipeline, built(tmp_path, "no"), REFERENCES)
    kept = "version 2 of echo stays champion, version 3 is challenger"
    with pytest.raises(StepError, match=f"not promoted: right on 0 of 60 examples, .* fewer .*; {kept}"):
        do_step("register", config(worse, "register.promote=true"))
    assert aliases() == {"challenger": "3", "champion": "2", "previous": None}
    failed = last_run("register")
    assert failed.info.status == "FAILED"
    assert failed.data.metrics["promotion.difference"] == -1
    assert registered(failed.info.run_id)["promotion"]["promoted"] is False
    assert MlflowClient().get_model_version("echo", "3").tags["promotion"].startswith("not promoted: right on 0 of 60")


@pytest.mark.slow
def test_a_promotion_can_be_rolled_back_by_a_command_and_says_who_when_and_why(
    store: str, pipeline: Run, tmp_path: Path
) -> None:
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes."), REFERENCES)))
    with changing("echo"):
        make_champion("echo", "3", "it was promoted")
    assert aliases() == {"challenger": "3", "champion": "3", "previous": "2"}
    words = [
        "-P",
        "register.name=echo",
        "-P",
        "register.rollback=true",
        "-P",
        "register.reason=it says too little, it's short",
    ]
    done = run("mlflow", "run", ".", "-e", "register", "--env-manager", "local", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "version 2 of echo is champion again; version 3 is previous" in done.stdout
    assert aliases() == {"challenger": "3", "champion": "2", "previous": "3"}
    back = last_run("rollback")
    assert (back.info.status, back.info.run_name) == ("FINISHED", "rollback")
    assert back.data.tags["rollback.reason"] == "rolled back: it says too little, it's short"
    assert back.data.tags["rollback.user"] == back.info.user_id
    assert "step.fingerprint" not in back.data.tags
    history = registered(back.info.run_id)["history"]
    assert [change["version"] for change in history] == ["2", "3", "2"]
    assert history[-1]["run_id"] == back.info.run_id


def test_a_champion_whose_files_are_damaged_does_not_come_back(store: str, pipeline: Run, tmp_path: Path) -> None:
    first = built(tmp_path, "yes")
    do_step("register", config(evaluated(tmp_path, pipeline, first, REFERENCES)))
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes."), REFERENCES)))
    with changing("echo"):
        make_champion("echo", "3", "it was promoted")
    damage(first)
    with pytest.raises(StepError, match=r"version 2 of echo cannot be champion again: .*echo\.py of models:/m-"):
        do_step("register", config(None, "register.rollback=true"))
    assert aliases()["champion"] == "3"


@pytest.mark.slow
def test_a_rollback_goes_with_nothing_that_registers(store: str) -> None:
    for more in ("evaluate_run_id=abc", "register.promote=true"):
        with pytest.raises(ConfigError, match=r"cannot be combined with evaluate_run_id or register\.promote: leave"):
            config(None, "register.rollback=true", more)
    done = run("python", "-m", "steps.main", "register.rollback=true")
    assert done.returncode == 2
    assert "register.rollback and register.verify_key work with -e register only: add it" in done.stderr


def test_without_an_evaluation_it_asks_for_one(store: str) -> None:
    with pytest.raises(StepError, match="no evaluate_run_id: name a finished run of evaluate"):
        do_step("register", config(None))


@pytest.mark.parametrize(
    "name", ["", "a b", "name;rm", "a/b", "a" * 101, "champion", "Latest", "v12", "7", "..", "m-" + "0" * 32]
)
def test_a_name_that_would_be_taken_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"register\.name="):
        compose_config([f"register.name='{name}'"])


def refused(evaluate: Run, match: str) -> None:
    """Registering what *evaluate* judged raises StepError with *match*, and registers nothing."""
    with pytest.raises(StepError, match=match):
        do_step("register", config(evaluate))
    assert versions() == []
    assert last_run("register").info.status == "FAILED"


@pytest.mark.parametrize("verdict", ["failed", "inconclusive"])
def test_what_evaluate_did_not_pass_is_not_registered(store: str, pipeline: Run, tmp_path: Path, verdict: str) -> None:
    evaluate = evaluated(tmp_path, pipeline, pipeline, REFERENCES, verdict=verdict)
    refused(evaluate, f"has the verdict {verdict}, not passed: nothing is registered")


def test_gates_that_were_changed_afterwards_count_for_nothing(store: str, pipeline: Run, tmp_path: Path) -> None:
    evaluate = evaluated(tmp_path, pipeline, pipeline, REFERENCES, verdict="failed")
    gates = artifact(evaluate, "gates.json")
    gates.write_text(gates.read_text().replace('"failed"', '"passed"'))
    refused(evaluate, r"its artifact gates\.json has changed: run evaluate again")
    # And not when the list of artifacts is changed with it.
    stated = json.loads(artifact(evaluate, "artifacts.json").read_text())
    text = artifact(evaluate, "gates.json").read_bytes()
    stated["gates.json"] = [len(text), hashlib.sha256(text).hexdigest()]
    artifact(evaluate, "artifacts.json").write_text(json.dumps(stated))
    refused(evaluate, r"gates\.json of evaluate run \w+ has changed since it was written")


def test_a_model_with_a_damaged_file_is_refused_whichever_candidate_it_is(
    store: str, pipeline: Run, tmp_path: Path
) -> None:
    evaluate = evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)
    damage(pipeline)
    refused(evaluate, r"echo\.py of models:/m-.* has changed since it was logged")


def test_a_model_with_a_missing_file_is_refused(store: str, pipeline: Run, tmp_path: Path) -> None:
    model = MlflowClient().get_logged_model(pipeline.data.tags["output.model_uri"].removeprefix("models:/"))
    evaluate = evaluated(tmp_path, pipeline, pipeline, REFERENCES)
    next(Path(model.artifact_location).rglob("echo.py")).unlink()
    refused(evaluate, r"echo\.py of models:/m-.* is missing")


def test_a_model_that_is_not_ready_is_refused(store: str, pipeline: Run, tmp_path: Path) -> None:
    evaluate = evaluated(tmp_path, pipeline, pipeline, REFERENCES)
    MlflowClient().finalize_logged_model(pipeline.data.tags["output.model_uri"].removeprefix("models:/"), "FAILED")
    refused(evaluate, "is FAILED, not READY")


def test_a_model_with_another_signature_than_the_champion_is_refused(store: str, pipeline: Run, tmp_path: Path) -> None:
    do_step("register", config(evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)))
    other = evaluated(tmp_path, pipeline, built(tmp_path, "yes", signature=OTHER_SIGNATURE), REFERENCES)
    fact = "the signature is not that of the champion, echo version 2: register it under another name"
    with pytest.raises(StepError, match=fact):
        do_step("register", config(other))
    assert versions() == ["1", "2"]
    do_step("register", config(other, "register.name=another"))
    assert number_with("another", "champion") == "2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second_call", "left"),
    [("mlflow.MlflowClient.create_model_version", ["1"]), ("steps.register.complete_version", ["1", "2"])],
    ids=["versions", "bills_of_materials"],
)
def test_a_kill_between_the_candidates_leaves_no_alias_and_can_be_completed(
    store: str, pipeline: Run, tmp_path: Path, second_call: str, left: list[str]
) -> None:
    evaluate = evaluated(tmp_path, pipeline, built(tmp_path, "yes"), REFERENCES)
    overrides = ["register.name=echo", f"evaluate_run_id={evaluate.info.run_id}"]
    assert program("dying_register.py", second_call, *overrides).returncode == -9
    assert versions() == left
    assert set(aliases().values()) == {None}
    do_step("register", config(evaluate))
    assert versions() == ["1", "2"]
    assert aliases() == {"challenger": "2", "champion": "2", "previous": None}
    for number in versions():
        assert f'load_model("models:/echo/{number}")' in MlflowClient().get_model_version("echo", number).description
