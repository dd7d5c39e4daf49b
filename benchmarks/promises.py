"""Tries again what docs/reference/status.md promises: runs the tests that its tables name, and tells how each row went.

    python -m benchmarks.promises [WORD ...]

With words, only rows that contain one of them. Each test file runs once, slow tests too. No row needs root: a
test that does is skipped without it, and the table says so. All rows together take about 20 minutes on 2 cores.
"""

import datetime
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from steps.config.schema import ROOT

STATUS = ROOT / "docs" / "reference" / "status.md"
PACKAGES = ("mlflow", "hydra-core", "torch", "transformers", "onnxruntime-genai")


@dataclass(frozen=True)
class Promise:
    """A row of a table: `what` happens, and the names of the test files that show it."""

    what: str
    tests: tuple[str, ...]


def promises(page: str) -> list[Promise]:
    """Return the rows of all tables of the Markdown *page* whose last column names test files."""
    rows = [line.strip("| ").split("|") for line in page.splitlines() if line.startswith("|")]
    named = [(cells[0].strip(), tuple(re.findall(r"`(test_\w+\.py)`", cells[-1]))) for cells in rows]
    return [Promise(what, tests) for what, tests in named if tests]


def outcome(*tests: Path) -> Counter[str]:
    """Return how many of the tests in the files *tests* passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-n0", f"--junitxml={report}", *map(str, tests)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.is_file():
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        suite = next(ElementTree.parse(report).iter("testsuite"))
    failed, skipped = int(suite.get("failures", 0)) + int(suite.get("errors", 0)), int(suite.get("skipped", 0))
    return Counter(passed=int(suite.get("tests", 0)) - failed - skipped, failed=failed, skipped=skipped)


def main(words: Iterable[str]) -> int:
    """Run the tests of the rows that contain one of *words*, and print the table; return 1 if a test failed."""
    chosen = [each for each in promises(STATUS.read_text(encoding="utf-8")) if any(word in each.what for word in words)]
    found: dict[str, Counter[str]] = {}
    print("| what happens | tests | result |\n|---|---|---|")
    for each in chosen:
        for name in each.tests:
            if name not in found:
                found[name] = outcome(*(ROOT / "tests").rglob(name))
        counts = sum((found[name] for name in each.tests), Counter[str]())
        told = ", ".join(f"{counts[how]} {how}" for how in ("passed", "failed", "skipped") if counts[how])
        print(f"| {each.what} | {', '.join(each.tests)} | {told} |", flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    failed = sum(counts["failed"] for counts in found.values())
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    python = f"Python {platform.python_version()}, {platform.system()}"
    print(f"\nLast tried on {now} with {python}, {versions}: {len(chosen)} rows, {failed} tests failed.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [""]))
