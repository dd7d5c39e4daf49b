"""A folder as one .tar.zst: the same bytes for the same files, whoever makes it, and when."""

import tarfile
from pathlib import Path

from backports import zstd

LEVEL = 3
"""zstd's own default: quantised weights hardly become smaller at any level."""


def write_archive(folder: Path, archive: Path) -> None:
    """Write *folder* to the file *archive*, under the folder's own name.

    Names are sorted, times are 0, the owner is 0, and modes depend neither on the umask nor on the user. Another
    version of zstd may compress the same tar into other bytes.
    """
    paths = [folder, *sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix())]
    with (
        zstd.open(archive, "wb", level=LEVEL) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in paths:
            entry = tarfile.TarInfo(path.relative_to(folder.parent).as_posix())
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
                continue
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)
