"""Every figure of a window of requests, held against the version's evaluation, with its label and unit."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from steps.evaluation.metrics import Meaning
from steps.evaluation.statistics import difference, share, with_interval
from steps.monitoring.drift import of_kinds, of_numbers
from steps.monitoring.watched import Baseline
from steps.monitoring.window import Request

MEANINGS = {
    "traffic.requests": Meaning("Requests", "count"),
    "errors.share": Meaning("Requests that the server could not answer", "share"),
    "late.share": Meaning("Requests that ran out of time", "share"),
    "refused.share": Meaning("Requests that were refused", "share"),
    "cancelled.share": Meaning("Requests whose client went away", "share"),
    "cut.share": Meaning("Answers cut off by length", "share"),
    "cut.difference": Meaning("The same, more than in the evaluation", "points"),
    "repeated.share": Meaning("Prompts that got the commonest answer", "share"),
    "repeated.difference": Meaning("The same, more than in the evaluation", "points"),
    "latency.p50": Meaning("Time for an answer, median", "seconds"),
    "latency.p95": Meaning("Time for an answer, 95th percentile", "seconds"),
    "latency.per_token_p50": Meaning("Time for an answer per token, median", "seconds"),
    "latency.per_token_ratio": Meaning("The same, relative to the evaluation", "ratio"),
    "first_token.p50": Meaning("Time to the first token of a stream, median", "seconds"),
    "first_token.p95": Meaning("Time to the first token, 95th percentile", "seconds"),
    "first_token.ratio": Meaning("The same, relative to the evaluation's for as long a prompt", "ratio"),
    "drift.prompt_tokens": Meaning("Prompt lengths: largest difference in share (Kolmogorov-Smirnov)", "share"),
    "drift.prompt_tokens_p": Meaning("The same, p-value", ""),
    "drift.scripts": Meaning("Scripts of prompts: Cramér's V, as of equally large samples", "share"),
    "drift.scripts_p": Meaning("The same, p-value", ""),
    "live.prompts": Meaning("Live prompts asked again", "count"),
    "live.agreement": Meaning("Live prompts: same answer as the reference", "share"),
    "live.agreement_difference": Meaning("The same, more than in the evaluation", "points"),
    "live.same_top": Meaning("Live prompts: same likeliest token as the reference", "share"),
    "live.kl_mean": Meaning("Live prompts: KL divergence from the reference, mean", "nats"),
    "live.perplexity_ratio": Meaning("Live prompts: perplexity, relative to the reference", "ratio"),
}
"""All figures that a gate may name. Those that a window does not have are not judged."""

FEWEST = 5
"""The fewest requests of one length of prompt whose median is shown."""

FEWEST_PROMPTS = 10
"""The fewest different prompts whose answers are held against each other: that of one alone is always the commonest."""


def figures_of(requests: Sequence[Request], baseline: Baseline) -> dict[str, float]:
    """Return the figures of *requests*.

    One that no request shows, such as the first token's time without streams, is left out.
    """
    answered = [each for each in requests if each.answered]
    # A client that asks for one token, to see that the server is there, has every answer cut off, and often the same.
    whole = [each for each in answered if each.max_tokens is None or each.max_tokens >= baseline.max_tokens]
    live = repeated((each.prompt, each.answers[0]) for each in _of_one_server(whole) if each.answers)
    return {
        "traffic.requests": float(len(requests)),
        **with_interval("errors.share", share([each.failed and not each.late for each in requests])),
        **with_interval("late.share", share([each.late for each in requests])),
        **with_interval("refused.share", share([each.refused for each in requests])),
        **with_interval("cancelled.share", share([each.cancelled for each in requests])),
        **{f"refused.{code}": float(count) for code, count in refusals(requests, with_field=False).items()},
        **_compared("cut", [reason == "length" for each in whole for reason in each.finish_reasons], baseline.cut),
        **_compared(
            "repeated",
            live if len(live) >= FEWEST_PROMPTS else [],
            repeated(zip(baseline.prompts, baseline.answers, strict=True)),
        ),
        **_latency(answered, baseline),
        **_first_token(answered, baseline),
        **_drift(requests, baseline),
    }


def refusals(requests: Sequence[Request], *, with_field: bool = True) -> dict[str, int]:
    """Return how many of *requests* were refused for each reason, most first."""
    reasons = Counter((each.reason if with_field else each.error) or "" for each in requests if each.refused)
    return dict(reasons.most_common())


def repeated(answers: Iterable[tuple[Hashable, Hashable]]) -> list[bool]:
    """Return for each different prompt of *answers* (prompt, answer) whether its answer is the commonest one."""
    by_prompt = dict(answers)
    commonest = [answer for answer, _times in Counter(by_prompt.values()).most_common(1)]
    return [answer in commonest for answer in by_prompt.values()]


def _of_one_server(requests: Sequence[Request]) -> list[Request]:
    """Return those of *requests* that the busiest server answered: hashes of two servers cannot be compared."""
    busiest = [server for server, _times in Counter(each.server for each in requests).most_common(1)]
    return [each for each in requests if each.server in busiest]


def by_prompt_length(answered: Sequence[Request]) -> dict[int, dict[str, float]]:
    """Return median times by length of the prompt: up to 2, 4, 8 ... tokens."""
    groups: dict[int, list[Request]] = {}
    for each in answered:
        if each.prompt_tokens:
            groups.setdefault(1 << (each.prompt_tokens - 1).bit_length(), []).append(each)
    found: dict[int, dict[str, float]] = {}
    for most, group in sorted(groups.items()):
        first = [each.first_token for each in group if each.first_token is not None]
        if len(group) >= FEWEST:
            found[most] = {"by_length.latency_p50": float(np.median([each.seconds for each in group]))}
        if len(first) >= FEWEST:
            found[most]["by_length.first_token_p50"] = float(np.median(first))
    return found


def _compared(name: str, live: Sequence[bool], before: Sequence[bool]) -> dict[str, float]:
    if not live:
        return {}
    found = with_interval(f"{name}.share", share(live))
    return found | with_interval(f"{name}.difference", difference(live, before)) if before else found


def _latency(answered: Sequence[Request], baseline: Baseline) -> dict[str, float]:
    if not answered:
        return {}
    p50, p95 = np.quantile([each.seconds for each in answered], [0.5, 0.95])
    found = {"latency.p50": float(p50), "latency.p95": float(p95)}
    if each_token := [each.seconds / each.output_tokens for each in answered if each.output_tokens]:
        found["latency.per_token_p50"] = float(np.median(each_token))
        if baseline.seconds_per_token:
            found["latency.per_token_ratio"] = found["latency.per_token_p50"] / baseline.seconds_per_token
    return found


def _first_token(answered: Sequence[Request], baseline: Baseline) -> dict[str, float]:
    streams = [(each.first_token, each.prompt_tokens or 0) for each in answered if each.first_token is not None]
    if not streams:
        return {}
    seconds, lengths = (np.array(column, dtype=float) for column in zip(*streams, strict=True))
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    found = {"first_token.p50": float(p50), "first_token.p95": float(p95)}
    if baseline.first_token:
        expected = np.interp(lengths, list(baseline.first_token), list(baseline.first_token.values()))
        found["first_token.ratio"] = float(np.median(seconds / expected))
    return found


def _drift(requests: Sequence[Request], baseline: Baseline) -> dict[str, float]:
    lengths = [each.prompt_tokens for each in requests if each.prompt_tokens is not None]
    scripts = [each.script for each in requests if each.script is not None]
    found: dict[str, float] = {}
    if lengths and baseline.prompt_tokens:
        found |= of_numbers(lengths, baseline.prompt_tokens).figures("drift.prompt_tokens")
    if scripts and baseline.scripts:
        found |= of_kinds(scripts, baseline.scripts).figures("drift.scripts")
    return found
