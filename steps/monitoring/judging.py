"""The gates of a window, and what follows when one fails."""

from collections.abc import Mapping, Sequence

from steps.evaluation.gates import FAILED, Gate, Section, Verdict, judge
from steps.monitoring.figures import MEANINGS
from steps.records.errors import StepError
from steps.registry.aliases import Change, changing, history, roll_back, settle

SECTION = Section("monitor.gates", "wait for more requests")

CLIENTS_AND_LOAD = ("drift.", "refused.", "cancelled.", "late.", "traffic.", "latency.", "first_token.")
"""Figures that depend on what clients send, and how much of it. Another version might not change them, so they roll
nothing back. How fast a build is by itself, evaluate has judged."""

ROLLED_BACK = "rolled back"
"""How the reason of a change begins that was a rollback; see the history of champions."""


def judge_window(figures: Mapping[str, float], gates: Mapping[str, Gate]) -> list[Verdict]:
    """Return a verdict for each of *gates* but those `unjudged`."""
    left_out = unjudged(figures, gates)
    return judge(figures, {name: gate for name, gate in gates.items() if name not in left_out}, SECTION)


def unjudged(figures: Mapping[str, float], gates: Mapping[str, Gate]) -> list[str]:
    """Return the names of the *gates* whose figure this window cannot have: no streams, or no texts.

    A gate on a figure that does not exist is not among them: it fails.
    """
    return [name for name, gate in gates.items() if gate.metric in MEANINGS and gate.metric not in figures]


def failed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the *verdicts* that failed."""
    return [each for each in verdicts if each.verdict == FAILED]


def roll_back_from(name: str, version: str, verdicts: Sequence[Verdict]) -> Change | None:
    """Make the previous champion of *name* champion again if a gate failed by the fault of *version*.

    Returns None if it did not: a figure that is missing is no fault of a version. Raises StepError if *version* is not
    champion, or there is nothing to go back to: also if it became champion by a rollback itself, because the previous
    one is then the one that was worse.
    """
    broken = [each for each in failed(verdicts) if each.figure is not None]
    at_fault = [each for each in broken if not each.metric.startswith(CLIENTS_AND_LOAD)]
    if not at_fault:
        return None
    with changing(name):
        settle(name)  # a rollback by hand, or one that was interrupted, is in the history then
    changes = history(name)
    if changes and changes[-1].version == version and came_back(changes):
        msg = f"version {version} of {name} became champion by a rollback: there is no better one to go back to"
        raise StepError(msg)
    reasons = "; ".join(each.reason for each in at_fault)
    return roll_back(name, f"{ROLLED_BACK} by monitor: {reasons}"[:1000], only=version)


def came_back(changes: Sequence[Change]) -> bool:
    """Return whether the last of *changes* was a rollback: by monitor, or one that undid the change before it."""
    last = changes[-1]
    undone = len(changes) > 1 and (last.version, last.replaced) == (changes[-2].replaced, changes[-2].version)
    return undone or last.reason.startswith(ROLLED_BACK)
