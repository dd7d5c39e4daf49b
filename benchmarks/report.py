"""What the benchmarks have in common: figures taken in turns, and how they are told."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


def in_turns(rounds: int, takers: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Return the figures of all *takers*, taken in turns, so that what slows the machine slows all of them alike.

    A first round warms up and is not counted.
    """
    figures: dict[str, list[float]] = {name: [] for name in takers}
    for _ in range(rounds + 1):
        for name, take in takers.items():
            figures[name].append(take())
    return {name: taken[1:] for name, taken in figures.items()}


def ratio(figures: Mapping[str, list[float]], one: str, other: str) -> float:
    """Return the median over the rounds of *one*'s figure over *other*'s in the same round."""
    return statistics.median(a / b for a, b in zip(figures[one], figures[other], strict=True))


@dataclass(frozen=True)
class Goal:
    """A ratio or figure, and the bound that it should keep: at least *low*, at most *high*."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bound(self) -> str:
        """The bound in words."""
        return f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"

    @property
    def kept(self) -> bool:
        """Whether the value keeps its bound."""
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


def machine() -> str:
    """Return date, processor and number of usable CPUs."""
    names = (
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    )
    cpus = len(os.sched_getaffinity(0))
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    return f"{today}, {next(names, platform.machine())}, {cpus} CPUs, load {os.getloadavg()[0]:.1f} at the end"


def tell(medians: Mapping[str, Mapping[str, float]], goals: list[Goal], path: Path | None) -> None:
    """Print a table of *medians* (rows of columns) and one of *goals* in Markdown; write both as JSON to *path*."""
    columns = list(dict.fromkeys(column for row in medians.values() for column in row))
    print(f"\n{machine()}\n")
    if columns:
        print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name, row in medians.items():
            print(f"| {name} | {' | '.join(f'{row[c]:.4g}' if c in row else '' for c in columns)} |")
    if goals:
        print("\n| goal | bound | value | |\n|---|---|---|---|")
        for goal in goals:
            print(f"| {goal.what} | {goal.bound} | {goal.value:.3g} | {'kept' if goal.kept else 'MISSED'} |")
    if path:
        told = [{"what": g.what, "bound": g.bound, "value": g.value, "kept": g.kept} for g in goals]
        path.write_text(json.dumps({"machine": machine(), "medians": medians, "goals": told}, indent=2) + "\n")
