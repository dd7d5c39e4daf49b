"""Whatever the hub does, what is fetched from it is what it states of one commit, or an error says why not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from steps.checkpoint.hub import fetch_checkpoint, fetch_onnx, restore
from steps.checkpoint.manifest import Manifest, verify
from steps.records.errors import StepError
from tests.conftest import ROOT
from tests.hub_server import Fault, Hub, Repository, environment, serving_hub, sha256

NAME = "someone/small-model"
WEIGHTS = bytes(range(256)) * 40
FILES = {
    "README.md": b"---\nlicense: mit\n---\nA card.\n",
    "config.json": b'{"model_type": "phi3"}',
    "tokenizer.json": b"{}" * 900,
    "model.safetensors": WEIGHTS,
    # What nobody needs, or nobody should run.
    "pytorch_model.bin": b"a pickle" * 200,
    "modeling_phi3.py": b"import os",
    "LICENSE.py": b"import os",
    "consolidated.safetensors": b"the weights again" * 100,
    "original/model.safetensors": b"the weights again" * 101,
}
NEEDED = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
CDN = "GET /cdn/"
WEIGHTS_BODY = f"GET /cdn/{sha256(WEIGHTS)}"
RESOLVE = "GET /api/models/.*/revision/"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that huggingface_hub waits in this process, which it does not really."""
    waits: list[float] = []
    for module in ("file_download", "utils._http"):
        # All that these two use of `time`.
        monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "huggingface"


@pytest.fixture
def hub(home: Path) -> Iterator[Hub]:
    with serving_hub(home) as hub:
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    repository = hub.repository(NAME)
    repository.commit(FILES)
    return repository


def fetch(revision: str = "main", *, offline: bool = False) -> tuple[Manifest, Path]:
    return fetch_checkpoint(NAME, revision, offline=offline)


def blob_of(home: Path, content: bytes) -> Path:
    return home / "hub" / f"models--{NAME.replace('/', '--')}" / "blobs" / sha256(content)


def assert_whole(fetched: tuple[Manifest, Path], files: dict[str, bytes] = FILES) -> None:
    """Assert that *fetched* states, and has, exactly the needed ones of *files*."""
    manifest, folder = fetched
    assert [file.path for file in manifest.files] == NEEDED
    assert {file.path: file.sha256 for file in manifest.files} == {path: sha256(files[path]) for path in NEEDED}
    verify(manifest, folder)


# What is fetched


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
    with pytest.raises(StepError, match=r"holds no \.safetensors file"):
        fetch()
    assert len(hub.log) == 1


def test_what_the_caller_has_against_a_checkpoint_is_said_before_its_weights_are_downloaded(
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


def test_a_ready_onnx_folder_is_fetched_with_the_repositorys_card_and_nothing_beside_it(hub: Hub) -> None:
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


# A hub that misbehaves


def test_a_body_that_is_cut_is_taken_up_where_it_ended(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB otherwise: what came of a chunk is dropped
    hub.faults.append(Fault(WEIGHTS_BODY, times=1, cut=5000))
    assert_whole(fetch())
    assert [request.range for request in hub.asked(WEIGHTS_BODY)] == [None, "bytes=5000-"]
    assert waits == [1]


def test_a_body_that_never_comes_is_an_error(hub: Hub, repository: Repository, home: Path, waits: list[float]) -> None:
    hub.faults.append(Fault(WEIGHTS_BODY, cut=0))
    with pytest.raises(StepError, match="does not answer"):
        fetch()
    assert waits == [1] * 5
    assert not blob_of(home, WEIGHTS).exists()


def test_a_body_that_is_too_short_is_an_error_and_the_next_fetch_is_right(
    hub: Hub, repository: Repository, home: Path
) -> None:
    hub.faults.append(Fault(WEIGHTS_BODY, times=1, short=5000))
    with pytest.raises(StepError, match="should be of size 10240 but has size 5000"):
        fetch()
    assert not blob_of(home, WEIGHTS).exists()
    assert_whole(fetch())


@pytest.mark.parametrize("body", [WEIGHTS_BODY, "GET /api/resolve-cache/.*/config.json"], ids=["large", "small"])
def test_a_wrong_bit_is_found_and_that_file_alone_downloaded_once_more(
    hub: Hub, repository: Repository, capsys: pytest.CaptureFixture[str], body: str
) -> None:
    hub.faults.append(Fault(body, times=1, flip=True))
    assert_whole(fetch())
    assert "removed, downloaded again" in capsys.readouterr().out
    assert len(hub.asked(body)) == 2
    assert len(hub.asked("GET /cdn/|GET /api/resolve-cache/")) == len(NEEDED) + 1


@pytest.mark.parametrize("body", [WEIGHTS_BODY, "GET /api/resolve-cache/.*/config.json"], ids=["large", "small"])
def test_a_bit_that_is_wrong_again_is_an_error_and_stays_nowhere(
    hub: Hub, repository: Repository, home: Path, body: str
) -> None:
    hub.faults.append(Fault(body, flip=True))
    with pytest.raises(StepError, match=r"has \d+ bytes with hash \w+, not \d+ with \w+, downloaded 2 times"):
        fetch()
    assert not [path for path in home.rglob("*") if path.name in ("config.json", "model.safetensors") and path.exists()
                and path.read_bytes() != FILES[path.name]]  # fmt: skip
    with pytest.raises(StepError, match=r"is missing, and fetch_model\.offline=true"):
        fetch(offline=True)
    hub.faults.clear()
    assert_whole(fetch())


@pytest.mark.parametrize(
    ("status", "requests"),
    [
        # Where a file is gets asked once more at first without waiting.
        (429, {RESOLVE: 1, "HEAD .*/model.safetensors": 2, WEIGHTS_BODY: 1}),
        (503, {RESOLVE: 1, "HEAD .*/model.safetensors": 2}),
    ],
)
def test_a_hub_that_asks_to_wait_is_asked_again_then(
    hub: Hub, repository: Repository, status: int, requests: dict[str, int], waits: list[float]
) -> None:
    for request, times in requests.items():
        hub.faults.append(Fault(request, times=times, status=status, headers={"Retry-After": "70"}))
    assert_whole(fetch())
    assert waits == [71] * len(requests), "a second more, for what was rounded"


@pytest.mark.parametrize(
    ("status", "headers", "says", "waited"),
    [
        (429, {"Retry-After": "70"}, "429.*try again after 70 s", [71, 71]),
        (503, {}, "503.*try again later", [1, 2]),
        (403, {}, r"refuses \S+ \(403", []),
    ],
)
def test_a_hub_that_does_not_say_which_commit_it_is_is_an_error_though_the_cache_has_one(
    hub: Hub,
    repository: Repository,
    status: int,
    headers: dict[str, str],
    says: str,
    waited: list[float],
    waits: list[float],
) -> None:
    fetched = fetch()
    hub.faults.append(Fault(RESOLVE, status=status, headers=headers))
    with pytest.raises(StepError, match=says):
        fetch()
    assert waits == waited
    assert fetch(offline=True) == fetched


@pytest.mark.parametrize(("status", "says"), [(403, "the hub refuses"), (503, "the hub answers 503 for")])
def test_a_body_that_the_hub_refuses_is_an_error_and_the_next_fetch_is_right(
    hub: Hub, repository: Repository, home: Path, status: int, says: str, waits: list[float]
) -> None:
    hub.faults.append(Fault(WEIGHTS_BODY, times=1, status=status))
    with pytest.raises(StepError, match=rf"{says} {hub.cdn}/cdn/\w+") as raised:
        fetch()
    assert "Signature" not in str(raised.value)
    assert waits == []
    assert not blob_of(home, WEIGHTS).exists()
    assert_whole(fetch())


def test_a_file_that_the_hub_does_not_get_ready_is_an_error(
    hub: Hub, repository: Repository, home: Path, waits: list[float]
) -> None:
    hub.faults.append(Fault("HEAD .*/model.safetensors", status=503))
    with pytest.raises(StepError, match="answers 503"):
        fetch()
    assert waits == [1, 2, 4, 8, 8]
    assert not blob_of(home, WEIGHTS).exists()


def test_a_hub_that_is_gone_is_an_error_and_offline_takes_what_the_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with serving_hub(tmp_path / "other") as other:
        other.repository(NAME).commit(FILES)
        fetched = fetch()
    monkeypatch.setattr(constants, "ENDPOINT", other.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other" / "hub"))
    with pytest.raises(StepError, match=rf"{other.url} does not answer .*fetch_model\.offline=true"):
        fetch()
    assert waits == [1, 2]
    assert fetch(offline=True) == fetched


def test_a_hub_that_never_answers_is_given_up(
    hub: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    end = Event()
    hub.faults.append(Fault(RESOLVE, before=end.wait))
    with pytest.raises(StepError, match="does not answer"):
        fetch()
    assert waits == [1, 2]
    end.set()


def test_a_slow_hub_is_waited_for(hub: Hub, repository: Repository) -> None:
    hub.faults.append(Fault(".", pieces=5, before=lambda: time.sleep(0.1), underway=lambda: time.sleep(0.1)))
    assert_whole(fetch())


@pytest.mark.parametrize("path", ["../model.safetensors", "/etc/model.safetensors", "a\\..\\..\\b", "C:\\model.bin"])
def test_a_listing_with_a_path_outside_the_snapshot_is_refused_whole(
    hub: Hub, repository: Repository, path: str
) -> None:
    repository.listed[path] = 5
    with pytest.raises(StepError, match="which lies outside the snapshot: nothing was downloaded"):
        fetch()
    assert len(hub.log) == 1


def test_a_file_that_is_listed_and_not_there_is_an_error(hub: Hub, repository: Repository) -> None:
    repository.listed["tokenizer_config.json"] = 5
    with pytest.raises(StepError, match=r"lists a file that the hub does not have \(http\S+/tokenizer_config\.json\)"):
        fetch()
    with pytest.raises(StepError, match=r"is missing, and fetch_model\.offline=true"):
        fetch(offline=True)


def test_a_file_that_only_one_of_the_two_listings_names_is_an_error_and_that_listing_is_not_kept(
    hub: Hub, repository: Repository, home: Path
) -> None:
    repository.hidden.add("tokenizer.json")
    with pytest.raises(StepError, match=r"/tokenizer\.json is missing, downloaded 2 times"):
        fetch()
    assert not list(home.rglob("trees/*.json"))


def test_a_hub_that_answers_for_another_commit_is_refused(hub: Hub, repository: Repository) -> None:
    pinned = repository.branches["main"]
    repository.branches[pinned] = repository.commit(FILES | {"README.md": b"other"})
    with pytest.raises(StepError, match=f"says that {NAME}@{pinned} is commit"):
        fetch(pinned)


def test_an_endpoint_that_is_no_hub_is_named(hub: Hub, repository: Repository) -> None:
    hub.faults.append(Fault(RESOLVE, status=200))
    with pytest.raises(StepError, match=f"{hub.url} does not state commit, sizes and hashes"):
        fetch()


def test_too_little_room_is_said_with_the_figures_before_the_download(hub: Hub, repository: Repository) -> None:
    repository.listed["model-00001-of-00001.safetensors"] = 10**18
    for check in (None, lambda folder: None):
        with pytest.raises(StepError, match=r"needs 1000000000\.00 GB, and \d+\.\d\d GB are free in .*HF_HOME"):
            fetch_checkpoint(NAME, "main", offline=False, check=check)
    assert not hub.asked("/tree/|/resolve/")


def test_room_is_not_asked_for_what_the_cache_holds(hub: Hub, repository: Repository, home: Path) -> None:
    repository.listed["model-00001-of-00001.safetensors"] = 10**18
    blob = blob_of(home, WEIGHTS).with_name("0" * 64)
    blob.parent.mkdir(parents=True)
    blob.touch()
    with pytest.raises(StepError, match="lists a file that the hub does not have"):
        fetch()


# The cache


def test_a_cached_blob_that_changed_is_downloaded_again_and_no_other(hub: Hub, repository: Repository) -> None:
    manifest, folder = fetch()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"x" + WEIGHTS[1:])
    before = len(hub.asked("GET /cdn/|GET /api/resolve-cache/"))
    assert fetch() == (manifest, folder)
    assert weights.read_bytes() == WEIGHTS
    assert len(hub.asked("GET /cdn/|GET /api/resolve-cache/")) == before + 1


def test_a_cached_blob_that_changed_is_named_when_offline(hub: Hub, repository: Repository) -> None:
    _, folder = fetch()
    (folder / "model.safetensors").write_bytes(b"x" + WEIGHTS[1:])
    with pytest.raises(StepError, match=r"/model\.safetensors has 10240 bytes with hash \w+, not 10240"):
        fetch(offline=True)


def test_a_link_that_leads_out_of_the_cache_is_replaced_and_its_target_left_alone(
    hub: Hub, repository: Repository, tmp_path: Path
) -> None:
    _, folder = fetch()
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"mine")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(mine)
    assert_whole(fetch())
    assert mine.read_bytes() == b"mine"


def test_offline_without_a_cache_says_what_to_do(hub: Hub, repository: Repository) -> None:
    with pytest.raises(StepError, match=r"does not hold someone/small-model@main.*fetch it once while online"):
        fetch(offline=True)
    assert hub.log == []


def test_restoring_asks_the_hub_for_nothing_while_the_cache_is_right(hub: Hub, repository: Repository) -> None:
    manifest, folder = fetch()
    asked = len(hub.log)
    assert restore(manifest) == folder
    assert len(hub.log) == asked


# Processes

FETCH = """
import sys
from steps.checkpoint.hub import fetch_checkpoint
fetch_checkpoint(sys.argv[1], "main", offline=False)
"""
FOUR = f"""
import os, sys
from steps.checkpoint.hub import fetch_checkpoint
children = []
for _ in range(4):
    if (child := os.fork()) == 0:
        status = 1
        try:
            fetch_checkpoint({NAME!r}, "main", offline=False)
            status = 0
        finally:
            os._exit(status)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def start(script: str, hub: Hub, home: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", script, NAME],
        cwd=ROOT,
        env=os.environ | environment(hub, home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_four_fetches_at_once_download_once(hub: Hub, repository: Repository, home: Path) -> None:
    # The weights are held back until all four have asked for the commit.
    hub.faults.append(Fault(WEIGHTS_BODY, before=lambda: hub.wait_for(RESOLVE, 4)))
    assert start(FOUR, hub, home).wait() == 0
    bodies = [request.line for request in hub.asked("GET /cdn/|GET /api/resolve-cache/")]
    assert len(bodies) == len(set(bodies)) == len(NEEDED)
    assert_whole(fetch())


def test_what_another_process_has_mended_meanwhile_is_left_alone(hub: Hub, repository: Repository, home: Path) -> None:
    _, folder = fetch()
    (folder / "model.safetensors").write_bytes(b"x" + WEIGHTS[1:])
    other = Thread(target=fetch)
    with WeakFileLock(home / "hub" / ".locks" / folder.parents[1].name / "fetch_model.lock"):
        other.start()
        hub.wait_for(RESOLVE, 2)
        time.sleep(0.5)  # for the other to look at what is wrong; it must not act on it
        (folder / "model.safetensors").write_bytes(WEIGHTS)
    other.join()
    assert len(hub.asked(WEIGHTS_BODY)) == 1
    assert_whole(fetch())


def test_after_a_kill_in_the_middle_the_next_fetch_is_right_and_leaves_no_litter(
    hub: Hub, repository: Repository, home: Path
) -> None:
    underway, killed = Event(), Event()

    def wait_for_the_kill() -> None:
        underway.set()
        killed.wait()

    hub.faults.append(Fault(WEIGHTS_BODY, times=1, pieces=2, underway=wait_for_the_kill))
    running = start(FETCH, hub, home)
    underway.wait()
    running.send_signal(signal.SIGKILL)
    running.wait()
    killed.set()
    assert list(home.rglob("*.incomplete"))
    with pytest.raises(StepError, match=r"is missing, and fetch_model\.offline=true"):
        fetch(offline=True)
    assert_whole(fetch())
    assert not list(home.rglob("*.incomplete"))


def test_a_download_that_another_process_is_at_is_not_swept_away(hub: Hub, repository: Repository, home: Path) -> None:
    blobs = blob_of(home, WEIGHTS).parent
    locks = home / "hub" / ".locks" / blobs.parent.name
    abandoned, going_on = blobs / f"{'a' * 64}.1234.incomplete", blobs / f"{'b' * 64}.1234.incomplete"
    for folder in (blobs, locks):
        folder.mkdir(parents=True)
    abandoned.touch()
    going_on.touch()
    with WeakFileLock(locks / f"{'b' * 64}.lock"):
        fetch()
    assert not abandoned.exists()
    assert going_on.exists()
