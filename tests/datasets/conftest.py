"""Planted responses: a number for every stimulus and unit, so that a wrong join is seen in every value."""

import numpy as np
import pytest


def _planted(number, unit):
    """Between 0 and 9.96 in steps of .01; another stimulus or unit, also the next one, is another value."""
    number, unit = np.asarray(number), np.asarray(unit)
    return (number * 131 + unit * 17 + 7) % 997 / 100


@pytest.fixture
def planted():
    """Function of the number of a stimulus and of a unit."""
    return _planted


@pytest.fixture
def assert_joined():
    """Function of a recording, and of a function from stimulus id to number, that compares every response."""

    def compare(recording, number_of, scale=1.0, atol=1e-6):
        units = recording.units["planted"] if "planted" in recording.units else np.arange(recording.n_units)
        numbers = [number_of(stimulus) for stimulus in recording.presentations["stimulus"]]
        expected = scale * _planted(np.array(numbers)[:, None], np.asarray(units, int)[None, :])
        np.testing.assert_allclose(np.asarray(recording.read(), float), expected, atol=atol)

    return compare
