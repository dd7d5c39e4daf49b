"""The configured task, read and checked. Apart from the schema, so that how tasks are read touches evaluate alone."""

from dataclasses import replace

from steps.evaluation.scoring import check_reference
from steps.evaluation.tasks import Example, read_task
from steps.flow.errors import ConfigError
from steps.flow.schema import Evaluate, project_path


def read_examples(options: Evaluate) -> list[Example]:
    """Return the questions to ask. Raises ConfigError with file and line for what is not one."""
    try:
        examples = read_task(project_path(options.task))[: options.limit]
        if options.scorer is not None:
            examples = [_with_scorer(example, options.scorer) for example in examples]
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    return examples


def _with_scorer(example: Example, scorer: str) -> Example:
    """Return *example* with another *scorer*. Raises ValueError, naming it, when that cannot score it."""
    try:
        check_reference(scorer, example.reference, example.choices)
    except ValueError as error:
        msg = f"evaluate.scorer={scorer} cannot score example {example.id}: {error}"
        raise ValueError(msg) from error
    return replace(example, scorer=scorer)
