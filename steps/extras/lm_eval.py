"""Asks loaded candidates the tasks of lm-evaluation-harness, an optional extra.

The user asked for these tasks by name, so a failure fails the step. Elsewhere a failed measurement is only missing.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from mlflow.pyfunc import PyFuncModel

from steps.config.schema import Harness, project_path
from steps.extras.lm_eval_metrics import Results
from steps.logged_models.language_model import language_model
from steps.logged_models.process import Candidate, chat_with
from steps.records.errors import StepError, in_one_line


def check_harness(options: Harness) -> None:
    """Load the tasks and their data, or raise StepError: before hours of measuring, not after."""
    if options.tasks:
        from steps.extras.lm_eval_model import load_tasks

        try:
            load_tasks(options.tasks, _include_path(options)).load(options.tasks)
        except Exception as error:
            msg = f"evaluate.harness.tasks cannot be loaded: {in_one_line(error)}"
            raise StepError(msg) from error


def measure_harness(candidates: Mapping[str, Candidate], options: Harness, seed: int) -> dict[str, Results]:
    """Return the harness's results by candidate, none if there are no tasks. Raises StepError if one fails."""
    if not options.tasks:
        return {}
    return {name: loaded.run(ask_harness, name, loaded.folder, options, seed) for name, loaded in candidates.items()}


def ask_harness(model: PyFuncModel, name: str, folder: Path, options: Harness, seed: int) -> Results:
    """Return the harness's results for *model*, the candidate *name* from *folder*; runs in the candidate's process."""
    # Before the import, which reads it. Otherwise bootstraps would fork this process while the model's threads run.
    os.environ.setdefault("LMEVAL_DISABLE_MULTIPROC", "1")
    from tqdm import tqdm

    from steps.extras.lm_eval_model import run_harness

    # tqdm's own lock is a semaphore, and Python would report it as leaked when this process is killed.
    tqdm.set_lock(threading.RLock())
    try:
        return run_harness(
            language_model(model, folder),
            chat_with(model),
            options.tasks,
            include_path=_include_path(options),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            seed=seed,
        )
    except Exception as error:  # noqa: BLE001  any failure of the harness is reported the same way
        msg = f"evaluate.harness.tasks failed on {name}: {in_one_line(error)}"
        # Without the cause, because a library's own exception may not be picklable.
        raise StepError(msg) from None


def _include_path(options: Harness) -> Path | None:
    return None if options.include_path is None else project_path(options.include_path)
