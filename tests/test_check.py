"""The test command says at once what it does, and how long that takes."""

from tests.conftest import ROOT, run


def test_the_help_names_both_ways_and_their_minutes_and_checks_nothing() -> None:
    done = run("bash", "scripts/check", "--help")
    assert done.returncode == 0
    assert "--fast" in done.stdout
    assert done.stdout.count("minutes on 2 cores") == 2


def test_continuous_integration_runs_all_checks() -> None:
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert last == "exec timeout --signal=INT --kill-after=2m 80m bash scripts/check"
