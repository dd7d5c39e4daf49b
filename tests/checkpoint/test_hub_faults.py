"""A hub that cuts, garbles, refuses or keeps silent: what is fetched is right in the end, or an error says why."""

import time
from pathlib import Path
from threading import Event

import pytest
from huggingface_hub import constants

from steps.checkpoint.hub import fetch_checkpoint
from steps.records.errors import StepError
from tests.checkpoint.conftest import (
    FILES,
    NAME,
    NEEDED,
    RESOLVE,
    WEIGHTS,
    WEIGHTS_BODY,
    assert_whole,
    blob_of,
    fetch,
)
from tests.hub_server import Fault, Hub, Repository, serving_hub

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
def test_a_hub_that_names_no_commit_is_an_error_though_the_cache_has_one(
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


def test_a_file_in_only_one_of_two_listings_is_an_error_and_no_listing_is_kept(
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
    repository.listed["vocab.json"] = 10**18
    for check in (None, lambda folder: None):
        with pytest.raises(StepError, match=r"needs 1000000000\.00 GB, and \d+\.\d\d GB are free in .*HF_HOME"):
            fetch_checkpoint(NAME, "main", offline=False, check=check)
    assert not hub.asked("/tree/|/resolve/")


def test_room_is_not_asked_for_what_the_cache_holds(hub: Hub, repository: Repository, home: Path) -> None:
    repository.listed["vocab.json"] = 10**18
    blob = blob_of(home, WEIGHTS).with_name("0" * 64)
    blob.parent.mkdir(parents=True)
    blob.touch()
    with pytest.raises(StepError, match="lists a file that the hub does not have"):
        fetch()
