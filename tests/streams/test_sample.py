"""Samples are plain, and their errors are ones that a caller can tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from streamwise.streams import NonFiniteSampleError, Transition, UsageError


def test_a_transition_is_a_tuple_in_the_order_of_gymnasium_with_the_action_first():
    sample = Transition(np.zeros(2), 1, 0.5, np.ones(2), terminated=False, truncated=True)
    observation, action, reward, next_observation, terminated, truncated = sample
    assert (action, reward, terminated, truncated) == (1, 0.5, False, True)
    assert observation.sum() == 0.0
    assert next_observation.sum() == 2.0


def test_a_transition_cannot_be_changed_after_it_was_delivered():
    sample = Transition(np.zeros(2), None, 0.5, np.ones(2), terminated=False, truncated=False)
    with pytest.raises(AttributeError):
        sample.reward = 1.0


def test_what_the_user_can_mend_and_a_sample_that_is_not_finite_are_different_errors():
    assert issubclass(UsageError, ValueError)
    assert issubclass(NonFiniteSampleError, ValueError)
    assert not issubclass(NonFiniteSampleError, UsageError)
    assert not issubclass(UsageError, NonFiniteSampleError)
