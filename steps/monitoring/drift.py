"""Whether live requests are of the kind that the version was evaluated on.

Each comparison has an effect size from 0 (alike) to 1, and a p-value. With many requests every p is small, and with few
every size is large by chance. So a gate judges the size with a margin: what chance alone exceeds once in twenty.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from steps.evaluation.statistics import CONFIDENCE


@dataclass(frozen=True)
class Drift:
    """How different two samples are: the effect `size`, the `margin` on both sides of it, and `p`."""

    size: float
    margin: float
    p: float

    def figures(self, name: str) -> dict[str, float]:
        """Return it as metrics: *name* with its interval, and `<name>_p`."""
        ends = {f"{name}_low": max(0.0, self.size - self.margin), f"{name}_high": min(1.0, self.size + self.margin)}
        return {name: self.size, **ends, f"{name}_p": self.p}


def of_numbers(live: Sequence[float], task: Sequence[float]) -> Drift:
    """Return how far the distribution of the numbers *live* is from that of *task*.

    The size is that of Kolmogorov and Smirnov: the largest difference of the two shares below any one number.
    """
    found = stats.ks_2samp(live, task)
    together = len(live) * len(task) / (len(live) + len(task))
    return Drift(
        float(found.statistic), float(stats.kstwobign.ppf(CONFIDENCE)) / math.sqrt(together), float(found.pvalue)
    )


def of_kinds(live: Sequence[str], task: Sequence[str]) -> Drift:
    """Return how far the distribution of the kinds *live* is from that of *task*.

    The size is Cramér's V of their shares, as if both samples were equally large: it does not depend on how many
    requests there are. p is that of a chi-squared test.
    """
    ours, theirs = Counter(live), Counter(task)
    kinds = sorted(ours | theirs)
    degrees = max(1, len(kinds) - 1)
    # Of the same size where both are equally large, chi-squared is 4 n m / (n + m) times its square.
    margin = math.sqrt(stats.chi2.ppf(CONFIDENCE, degrees) * (len(live) + len(task)) / (4 * len(live) * len(task)))
    if len(kinds) == 1:
        return Drift(0.0, margin, 1.0)
    shares = [(ours[kind] / len(live), theirs[kind] / len(task)) for kind in kinds]
    size = math.sqrt(sum((one - other) ** 2 / (one + other) for one, other in shares) / 2)
    table = [[counts[kind] for kind in kinds] for counts in (ours, theirs)]
    return Drift(size, margin, float(stats.chi2_contingency(table, correction=False).pvalue))
