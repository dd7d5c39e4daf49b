"""Is a version at least as good as the champion? Both are asked evaluate's questions again, in turns.

Two conditions must hold. The version has no fewer right answers than the champion, so that a chain of promotions cannot
lose a little each time. And the 95 % interval of the difference does not go below -`register.promote_margin`, so that a
handful of examples cannot promote.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from steps.evaluation.asking import Answer
from steps.evaluation.metrics import show
from steps.evaluation.predictions import read_predictions, score
from steps.evaluation.statistics import Estimate, paired_difference
from steps.evaluation.tasks import Example
from steps.logged_models.logged_model import checked_model
from steps.logged_models.process import Candidate, candidate
from steps.measurement.measure import Measurements, ask_in_turns
from steps.records.artifacts import PREDICTIONS
from steps.records.errors import StepError, in_one_line
from steps.registry.aliases import CHAMPION, changing, make_champion, with_alias
from steps.registry.versions import run_of


@dataclass(frozen=True)
class Promotion:
    """Whether a version was made champion, and why; the `difference` in right answers if both were asked."""

    promoted: bool
    reason: str
    against: str | None = None
    difference: Estimate | None = None


def promote(name: str, version: ModelVersion, evaluate: Run, margin: float) -> Promotion:
    """Make *version* of *name* champion if it is at least as good as the champion on the examples of *evaluate*.

    The models are asked without the lock, so that a rollback never waits for them. If the champion has changed
    meanwhile, they are asked again. Raises StepError if one of them cannot be loaded.
    """
    while True:
        champion = with_alias(name, CHAMPION)
        result = _judge(version, champion, evaluate, margin)
        with changing(name):
            now = with_alias(name, CHAMPION)
            if (now and now.version) == (champion and champion.version):
                if result.promoted and (champion is None or champion.version != version.version):
                    make_champion(name, str(version.version), result.reason)
                return result
        print(f"the {CHAMPION} of {name} changed meanwhile: asking again", flush=True)


def _judge(version: ModelVersion, champion: ModelVersion | None, evaluate: Run, margin: float) -> Promotion:
    if champion is None:
        return Promotion(promoted=True, reason="there was no champion")
    if champion.version == version.version:
        return Promotion(promoted=True, reason="it is champion already")
    examples, parameters = examples_of(evaluate), evaluate.data.params
    max_tokens = int(parameters["evaluate.max_tokens"])
    answers = _ask((version, champion), examples, max_tokens)
    new, old = answers
    if failed := [answer for answer in answers[new] if answer.error is not None]:
        reason = f"{len(failed)} of {len(examples)} answers ended in an error: {failed[0].error}"
        return Promotion(promoted=False, reason=reason, against=str(champion.version))
    predictions = score(examples, answers)
    right = {each: [prediction.right[each] for prediction in predictions] for each in answers}
    difference = paired_difference(right[new], right[old], int(parameters["seed"]))
    figures = f"right on {sum(right[new])} of {len(examples)} examples, champion {old} on {sum(right[old])}"
    reached, why = decide(difference, margin)
    return Promotion(reached, f"{figures}: {why}", str(champion.version), difference)


def decide(difference: Estimate, margin: float) -> tuple[bool, str]:
    """Return whether a build with this *difference* in right answers is at least as good as the champion, and why.

    *margin*: how far below zero the interval may reach. Both are shares: 0.01 is one percentage point.
    """
    low, high = show(difference.low, "points"), show(difference.high, "points")
    shown = f"difference {show(difference.value, 'points')}, 95 % interval {low} to {high}"
    if difference.value < 0:
        return False, f"fewer ({shown})"
    if difference.low < -margin:
        return False, f"not fewer, but the examples are too few for register.promote_margin={margin:g} ({shown})"
    return True, f"not fewer ({shown})"


def examples_of(evaluate: Run) -> list[Example]:
    """Return the examples that the run *evaluate* asked, with the scorers that it used."""
    text = mlflow.artifacts.load_text(f"{evaluate.info.artifact_uri}/{PREDICTIONS}")
    return [each.example for each in read_predictions(text)]


def _ask(versions: Sequence[ModelVersion], examples: list[Example], max_tokens: int) -> dict[str, list[Answer]]:
    """Return the answers of *versions* by name. Each is loaded in a process of its own; they are asked in turns."""
    with ExitStack() as stack:
        loaded = {}
        for version in versions:
            name = f"version {version.version}"
            _uri, folder = stack.enter_context(checked_model(run_of(version)))
            loaded[name] = stack.enter_context(candidate(name, folder))
        for each in loaded.values():
            _require_loaded(each)
        found = Measurements()
        ask_in_turns(found, loaded, examples, max_tokens)
        return found.answers


def _require_loaded(loaded: Candidate) -> None:
    try:
        loaded.wait()
    except StepError:
        raise
    except Exception as error:
        fact = in_one_line(error)
        msg = f"{loaded.name} cannot be loaded here, so nothing is promoted ({fact}): promote where it can be loaded"
        raise StepError(msg) from error
