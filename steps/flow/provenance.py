"""Where a run comes from: code, lock, versions, machine."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from steps.config.schema import ROOT

PACKAGES = (
    "mlflow",
    "hydra-core",
    "transformers",
    "torch",
    "onnxruntime-genai",
    "onnxruntime",
    "huggingface-hub",
)


def provenance_tags(seed: int) -> dict[str, str]:
    """Return the tags that every run carries: commit, uncommitted changes, lock, versions, platform, seed."""
    tags = {
        "code.commit": _git("rev-parse", "HEAD") or "unknown",
        "code.dirty": "unknown" if (changes := _git("status", "--porcelain")) is None else str(bool(changes)).lower(),
        "lock.sha256": hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seed": str(seed),
    }
    return tags | {f"version.{name}": _version(name) for name in PACKAGES}


def uncommitted_changes() -> str:
    """Return the changes since the commit as a patch, after the names of untracked files; empty if there are none."""
    untracked = _git("ls-files", "--others", "--exclude-standard") or ""
    patch = _git("diff", "--no-ext-diff", "HEAD") or ""
    return "\n".join([*(f"# not tracked: {name}" for name in untracked.splitlines()), *patch.splitlines(), ""]).lstrip(
        "\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str | None:
    """Return git's output for the project, or None if there is no repository or no git."""
    try:
        command = ["git", "-C", str(ROOT), *arguments]
        # A file in another encoding must not fail the run, so bytes that are not UTF-8 are replaced.
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
