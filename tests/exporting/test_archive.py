"""The archive: the same bytes for the same files, and the same files when unpacked."""

import os
import subprocess
import tarfile
from pathlib import Path

from backports import zstd

from steps.exporting.archive import write_archive
from steps.exporting.checksums import damage_of, write_sums


def export_in(parent: Path) -> Path:
    folder = parent / "capitals"
    (folder / "model").mkdir(parents=True)
    for name in ("b", "a", "model/ñ", f"model/{'long' * 40}"):
        (folder / name).write_text(name)
    write_sums(folder)
    return folder


def test_the_same_files_give_the_same_bytes_whatever_their_times_and_modes(tmp_path: Path) -> None:
    one, two = export_in(tmp_path / "one"), export_in(tmp_path / "two")
    os.utime(two / "a", (1, 1))
    (two / "a").chmod(0o600)
    (two / "model").chmod(0o700)
    archives = [tmp_path / name for name in ("one.tar.zst", "two.tar.zst")]
    for folder, archive in zip((one, two), archives, strict=True):
        write_archive(folder, archive)
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_it_unpacks_to_the_same_folder_and_names_nobody(tmp_path: Path) -> None:
    archive = tmp_path / "capitals.tar.zst"
    write_archive(export_in(tmp_path / "one"), archive)
    with zstd.open(archive) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
        entries = list(tar)
    assert [each.name for each in entries] == sorted(each.name for each in entries)
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in entries} == {(0, 0, "", "", 0)}
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    with zstd.open(archive) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
        tar.extractall(unpacked, filter="data")
    assert [each.name for each in unpacked.iterdir()] == ["capitals"]
    assert damage_of(unpacked / "capitals") is None
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=unpacked / "capitals").returncode == 0
