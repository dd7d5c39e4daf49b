"""Whatever the hub does, what is fetched from it is what it states of one commit, or an error says why not."""

from pathlib import Path

import pytest

from steps.checkpoint.hub import fetch_checkpoint, fetch_onnx
from steps.checkpoint.manifest import verify
from steps.records.errors import StepError
from tests.checkpoint.conftest import (
    CDN,
    FILES,
    NAME,
    NEEDED,
    WEIGHTS,
    WEIGHTS_BODY,
    assert_whole,
    fetch,
)
from tests.hub_server import Fault, Hub, Repository, sha256


def test_only_what_is_needed_is_downloaded_never_pickles_or_code(hub: Hub, repository: Repository) -> None:
    assert_whole(fetch())
    assert {request.line.rpartition("/")[2] for request in hub.asked("HEAD .*/resolve/")} == set(NEEDED)
    assert len(hub.asked(CDN)) == 2


def test_a_branch_is_resolved_first_and_only_its_commit_is_asked_for(
    hub: Hub, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = repository.branches["main"]
    manifest, _ = fetch()
    assert (manifest.revision, manifest.location, manifest.licence) == (commit, NAME, "mit")
    assert f"to pin it: -P model.revision={commit}" in capsys.readouterr().out
    assert len(hub.asked("/main")) == 1
    assert "/main" in hub.log[0].line


def test_a_pinned_commit_that_is_in_the_cache_is_looked_up_and_not_downloaded_again(
    hub: Hub, repository: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fetch(repository.branches["main"])
    asked = len(hub.log)
    assert fetch(repository.branches["main"]) == first
    assert len(hub.log) == asked + 1
    assert "pin" not in capsys.readouterr().out


def test_a_branch_that_moves_gives_each_fetch_the_commit_of_its_time(hub: Hub, repository: Repository) -> None:
    old = fetch()
    new_files = FILES | {"model.safetensors": WEIGHTS[::-1]}
    repository.commit(new_files)
    new = fetch()
    assert_whole(old)
    assert_whole(new, new_files)
    assert old[0].revision != new[0].revision


def test_a_branch_that_moves_during_a_fetch_does_not_mix_two_commits(hub: Hub, repository: Repository) -> None:
    old = repository.branches["main"]
    new_files = {path: content[::-1] for path, content in FILES.items()}
    hub.faults.append(Fault("/tree/", times=1, before=lambda: repository.commit(new_files)))
    fetched = fetch()
    assert_whole(fetched)
    assert fetched[0].revision == old != repository.branches["main"]


def test_a_new_commit_with_the_same_weights_does_not_download_them_again(hub: Hub, repository: Repository) -> None:
    fetch()
    repository.commit(FILES | {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    assert fetch()[0].licence == "apache-2.0"
    assert len(hub.asked(WEIGHTS_BODY)) == 1


def test_a_repository_without_safetensors_is_refused_before_anything_is_downloaded(hub: Hub) -> None:
    hub.repository(NAME).commit({"pytorch_model.bin": b"a pickle" * 200, "config.json": b"{}"})
    with pytest.raises(StepError, match=r"holds no model\*\.safetensors file: it holds weights in \*\.bin"):
        fetch()
    assert len(hub.log) == 1


def test_a_checkpoint_that_the_caller_refuses_is_refused_before_its_weights_come(
    hub: Hub, repository: Repository
) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "config.json").read_bytes() == FILES["config.json"]
        msg = "not this one"
        raise StepError(msg)

    with pytest.raises(StepError, match="not this one"):
        fetch_checkpoint(NAME, "main", offline=False, check=refuse)
    assert not hub.asked(WEIGHTS_BODY)
    assert_whole(fetch_checkpoint(NAME, "main", offline=False, check=lambda folder: None))


def test_an_index_that_names_weights_which_are_not_there_is_refused(hub: Hub) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    hub.repository(NAME).commit({"model.safetensors.index.json": index, "model-00001-of-00002.safetensors": WEIGHTS})
    with pytest.raises(StepError, match=r"names model-00002-of-00002\.safetensors"):
        fetch()


def test_a_prebuilt_onnx_folder_is_fetched_with_the_card_and_nothing_else(hub: Hub) -> None:
    folder = "cpu_and_mobile/cpu-int4"
    wanted = {
        "LICENSE": b"MIT",
        "README.md": b"---\nlicense: mit\n---\n",
        f"{folder}/chat_template.jinja": b"{{ messages }}",
        f"{folder}/genai_config.json": b"{}",
        f"{folder}/model.onnx": b"onnx" * 300,
        f"{folder}/model.onnx.data": b"data" * 900,
        f"{folder}/tokenizer.json": b"{}",
    }
    others = {f"{folder}/modeling.py": b"", f"{folder}/deeper/x.onnx": b"", "cuda/model.onnx": b"", "x.json": b"{}"}
    commit = hub.repository(NAME).commit(wanted | others)
    manifest, path = fetch_onnx(NAME, "main", folder, offline=False)
    assert {file.path: file.sha256 for file in manifest.files} == {name: sha256(wanted[name]) for name in wanted}
    assert (manifest.revision, manifest.licence) == (commit, "mit")
    verify(manifest, path)
    assert fetch_onnx(NAME, "main", folder, offline=True) == (manifest, path)
    with pytest.raises(StepError, match=r"holds no \.onnx file in its folder cuda12"):
        fetch_onnx(NAME, "main", "cuda12", offline=False)


# Who may read it


def test_a_private_repository_is_read_with_hf_token_which_goes_to_the_hub_alone(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.private, repository.readers, hub.tokens = True, {"hf_good"}, {"hf_good"}
    monkeypatch.setenv("HF_TOKEN", "hf_good\n")
    assert_whole(fetch())
    assert {request.token for request in hub.asked("/api/|/resolve/")} == {"hf_good"}
    assert {(request.host, request.token) for request in hub.asked(CDN)} == {("localhost", None)}


def test_a_token_in_a_file_is_not_used(hub: Hub, repository: Repository, home: Path) -> None:
    home.mkdir()
    (home / "token").write_text("hf_stored")
    fetch()
    assert {request.token for request in hub.log} == {None}


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("someone/open", "hf_mistyped", r"does not accept HF_TOKEN \(401 Invalid credentials.*/settings/tokens"),
        ("someone/private", None, r"knows no public someone/private: check the name, or set HF_TOKEN"),
        ("someone/private", "hf_stranger", r"knows no someone/private that HF_TOKEN may read: check the name"),
        ("someone/absent", None, r"knows no public someone/absent: check the name"),
        ("someone/gated", None, r"is gated \(401 .*accept its licence at http\S+/someone/gated and set HF_TOKEN"),
        (
            "someone/gated",
            "hf_stranger",
            r"is gated \(403 .*accept its licence at http\S+/someone/gated with the account",
        ),
        ("someone/a/b", None, r"model\.repo_id=someone/a/b is not the name of a repository"),
    ],
)
def test_a_refusal_says_whether_it_is_the_token_the_licence_or_the_name(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, token: str | None, says: str
) -> None:
    hub.tokens = {"hf_stranger"}
    for kind in ("open", "private", "gated"):
        repository = hub.repository(f"someone/{kind}")
        repository.commit(FILES)
        repository.private, repository.gated = kind == "private", kind == "gated"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(StepError, match=says) as raised:
        fetch_checkpoint(name, "main", offline=False)
    assert "\n" not in str(raised.value)


def test_a_revision_that_is_not_there_is_named(hub: Hub, repository: Repository) -> None:
    with pytest.raises(StepError, match=f"{NAME} has no revision v9"):
        fetch("v9")


def test_templates_beside_the_chat_template_are_fetched(repository: Repository) -> None:
    extra = "additional_chat_templates/tool_use.jinja"
    repository.commit(FILES | {extra: b"{{ tools }}", "additional_chat_templates/code.py": b"", "other/a.jinja": b""})
    manifest, folder = fetch()
    assert [file.path for file in manifest.files] == sorted([*NEEDED, extra])
    assert (folder / extra).read_bytes() == b"{{ tools }}"
