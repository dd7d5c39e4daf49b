"""The hub's cache on this machine: believed only as far as its hashes, and shared between processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread

import pytest
from huggingface_hub.utils import WeakFileLock

from steps.checkpoint.hub_cache import restore
from steps.records.errors import StepError
from tests.checkpoint.conftest import (
    NAME,
    NEEDED,
    RESOLVE,
    WEIGHTS,
    WEIGHTS_BODY,
    assert_whole,
    blob_of,
    fetch,
)
from tests.conftest import PROGRAMS, ROOT
from tests.hub_server import Fault, Hub, Repository, environment


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


def start(program: str, hub: Hub, home: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, PROGRAMS / program, NAME],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment(hub, home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_four_fetches_at_once_download_once(hub: Hub, repository: Repository, home: Path) -> None:
    # The weights are held back until all four have asked for the commit.
    hub.faults.append(Fault(WEIGHTS_BODY, before=lambda: hub.wait_for(RESOLVE, 4)))
    assert start("fetch_four_times.py", hub, home).wait() == 0
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
    running = start("fetch_checkpoint.py", hub, home)
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
