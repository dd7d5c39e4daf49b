"""A machine without the memory for a model says so before it builds anything, with both figures."""

import pytest

from steps.flow.room import require_memory
from steps.records.errors import StepError


def test_a_model_that_cannot_fit_is_refused_with_both_figures() -> None:
    with pytest.raises(StepError, match=r"needs at least 9.0 GB of memory, and 4.0 GB are allowed here: raise the"):
        require_memory(7.64e9, 4e9)


def test_a_model_that_fits_is_not() -> None:
    require_memory(5e6, 1e9)
    require_memory(5e6)
