"""Turn the results of lm-evaluation-harness into metrics `harness.<task>.<metric>` of each candidate."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steps.evaluation.metrics import Metrics
from steps.evaluation.statistics import flips, paired_difference, share, with_interval

Results = Mapping[str, Any]
"""What `lm_eval_model.run_harness` returns."""


def harness_metrics(found: Mapping[str, Results], reference: str, seed: int) -> Metrics:
    """Return the metrics of each candidate's results, compared with the candidate *reference*.

    They are the harness's own metrics with their `_stderr`, and the number of `examples`. If a metric is the mean of
    a 0 or 1 for each example, it also gets an interval and, against the reference, the paired `_difference` with its
    interval and the numbers of examples `_lost` and `_gained`. Raises ValueError if the candidates were asked different
    examples.
    """
    metrics = {
        candidate: {f"harness.{name}": value for name, value in _reported(results)}
        for candidate, results in found.items()
    }
    right = {candidate: dict(_right(results)) for candidate, results in found.items()}
    for candidate, by_name in right.items():
        figures = metrics[candidate]
        for name, hits in by_name.items():
            metric, ours = f"harness.{name}", list(hits.values())
            value = share(ours)
            if not math.isclose(figures.get(metric, math.nan), value.value, abs_tol=1e-9):
                continue  # the harness's metric is not their mean
            figures |= with_interval(metric, value)
            if candidate != reference and name in right[reference]:
                theirs = right[reference][name]
                if theirs.keys() != hits.keys():
                    msg = f"{candidate} and {reference} were asked other examples of {name}; measure both again"
                    raise ValueError(msg)
                pairs = [theirs[example] for example in hits]
                lost, gained = flips(ours, pairs)
                figures |= {f"{metric}_lost": lost, f"{metric}_gained": gained}
                figures |= with_interval(f"{metric}_difference", paired_difference(ours, pairs, seed))
    return metrics


def write_harness(folder: Path, found: Mapping[str, Results]) -> None:
    """Write `<candidate>/results.json` and `samples_<task>.jsonl` for each candidate, as the harness names them."""
    for candidate, results in found.items():
        own = folder / candidate
        own.mkdir(parents=True)
        summary = {key: value for key, value in results.items() if key != "samples"}
        (own / "results.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for task, samples in results["samples"].items():
            lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
            (own / f"samples_{_name(task).replace('/', '_')}.jsonl").write_text(lines, encoding="utf-8")


def _reported(results: Results) -> Iterator[tuple[str, float]]:
    """Yield `<task>.<metric>` and its value for every number that the harness reports of a task or a group."""
    for task, figures in results["results"].items():
        if "sample_len" in figures:
            yield f"{_name(task)}.examples", figures["sample_len"]
        for key, value in figures.items():
            metric, comma, kind = key.partition(",")
            if comma and isinstance(value, int | float):
                base = metric.removesuffix("_stderr")
                yield f"{_name(task)}.{_filtered(base, kind)}{metric[len(base) :]}", value


def _right(results: Results) -> Iterator[tuple[str, dict[tuple[int, str], bool]]]:
    """Yield `<task>.<metric>` and whether each example is right, for metrics that are 0 or 1 for every example."""
    for task, samples in results["samples"].items():
        for kind in dict.fromkeys(sample["filter"] for sample in samples):
            own = [sample for sample in samples if sample["filter"] == kind]
            for metric in own[0]["metrics"]:
                values = [sample.get(metric) for sample in own]
                if _are_hits(values):
                    examples = [(sample["doc_id"], sample["doc_hash"]) for sample in own]
                    yield (
                        f"{_name(task)}.{_filtered(metric, kind)}",
                        dict(zip(examples, map(bool, values), strict=True)),
                    )


def _are_hits(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) and value in (0, 1) for value in values)


def _filtered(metric: str, kind: str) -> str:
    """Return the name of *metric* with the filter *kind* appended, unless it is `none`."""
    return _name(metric if kind == "none" else f"{metric}_{kind}")


def _name(text: str) -> str:
    """Return *text* with `_` for each character that MLflow refuses in the name of a metric."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", text)
