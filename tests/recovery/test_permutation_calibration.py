"""P values of permutation tests are uniform where there is no signal, and small where there is.

Each simulation draws features and responses that know nothing of each other, and tests 10 units with 99 permutations.
Measured by these tests, p values of units and least family-wise p values: share at most 0.05 in %, and p of the
Kolmogorov-Smirnov test against uniform.

=============================================  =====  ======  ========  =====
nulls                                          units  KS      families  KS
=============================================  =====  ======  ========  =====
white, shuffled, alpha fixed                    4.9   0.94     4.5      0.61
white, shuffled, alpha fixed, R2                5.1   0.30     4.8      0.57
white, shuffled, alpha chosen anew              4.6   0.05     3.5      0.46
white, shuffled, alpha chosen anew, R2          4.7   0.58     6.0      0.05
AR(1) of 0.7, runs shifted, alpha fixed         5.0   0.95     4.8      0.22
AR(1) of 0.7, blocks of 30, alpha fixed         4.8   0.79     5.8      0.18
AR(1) of 0.7, runs shifted, alpha chosen anew   4.0   0.97     6.7      0.25
wrong: white, shuffled, alpha chosen once      12.5   4e-112  14.5      3e-20
wrong: the same, R2                            11.4   2e-22   27.5      2e-18
wrong: AR(1) of 0.7, shuffled, alpha fixed     20.2   8e-24   52.0      1e-39
wrong: AR(1) of 0.7, blocks of 2, alpha fixed  13.4   2e-11   28.0      7e-16
=============================================  =====  ======  ========  =====
"""

from functools import partial

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binom, kstest

from neuralign.align.permutation import permutation_test
from neuralign.encoders.linear.ridge import RidgeCV

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

UNITS, PERMUTATIONS = 10, 99
RUNS = np.repeat(np.arange(5), 120)


def white(rng, n=60, p=10):
    return rng.standard_normal((n, p)), rng.standard_normal((n, UNITS))


def steep(rng):
    """50 features whose size falls as 1 / k, as that of principal axes does: alpha makes a difference."""
    X, Y = white(rng, p=50)
    return X / np.arange(1, 51), Y


def slow(rng, memory=0.7, p=3):
    """AR(1) features and noise in runs, each run z-scored."""
    noise = rng.standard_normal((5, 220, p + UNITS))
    series = lfilter([1], [1, -memory], noise, axis=1)[:, 100:]
    series = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    return np.split(series.reshape(len(RUNS), -1), [p], axis=1)


def p_values(simulate, n, alpha=None, **options):
    """P of each unit, and least family-wise p, of `n` simulations; ties broken at random, so that they are uniform."""
    p, family = np.empty((n, UNITS)), np.empty(n)
    for k in range(n):
        rng = np.random.default_rng([11, k])
        X, Y = simulate(rng)
        design = RidgeCV().design(X, options.get("runs"))
        fixed = alpha(design, Y) if callable(alpha) else alpha
        test = permutation_test(design, Y, fixed, n=PERMUTATIONS, seed=rng, **options)
        p[k] = test.p - rng.random(UNITS) / (1 + PERMUTATIONS)
        family[k] = test.p_family.min() - rng.random() / (1 + PERMUTATIONS)
    return p, family


def chosen_here(score, design, Y):
    """The alphas that are best for the responses under test, which no permutation then gets to choose."""
    return RidgeCV(score=score).fit(design, Y).alpha_


def rejects(p):
    return (p <= 0.05).mean()


def assert_uniform(p, family):
    # Units of one simulation share features and permutations: as if there were half as many.
    low, high = binom.ppf([0.001, 0.999], p.size // 2, 0.05) / (p.size // 2)
    assert low <= rejects(p) <= high
    assert kstest(p.ravel(), "uniform").pvalue > 0.001
    low, high = binom.ppf([0.001, 0.999], family.size, 0.05) / family.size
    assert low <= rejects(family) <= high
    assert kstest(family, "uniform").pvalue > 0.001


CASES = {
    "white, shuffled, alpha fixed": (white, 600, {"alpha": 30.0}),
    "white, shuffled, alpha fixed, R2": (white, 600, {"alpha": 30.0, "score": "r2"}),
    "white, shuffled, alpha chosen anew": (steep, 200, {}),
    "white, shuffled, alpha chosen anew, R2": (steep, 200, {"score": "r2"}),
    "AR(1) of 0.7, runs shifted, alpha fixed": (slow, 400, {"alpha": 30.0, "scheme": "circular", "runs": RUNS}),
    "AR(1) of 0.7, blocks of 30, alpha fixed": (
        slow,
        400,
        {"alpha": 30.0, "scheme": "block", "block": 30, "runs": RUNS},
    ),
    "AR(1) of 0.7, runs shifted, alpha chosen anew": (slow, 60, {"scheme": "circular", "runs": RUNS}),
}
WRONG = {
    "white, shuffled, alpha chosen once": (steep, 200, {"alpha": partial(chosen_here, "r")}),
    "white, shuffled, alpha chosen once, R2": (steep, 200, {"alpha": partial(chosen_here, "r2"), "score": "r2"}),
    "AR(1) of 0.7, shuffled, alpha fixed": (slow, 100, {"alpha": 30.0, "runs": RUNS}),
    "AR(1) of 0.7, blocks of 2, alpha fixed": (slow, 100, {"alpha": 30.0, "scheme": "block", "block": 2, "runs": RUNS}),
}


@pytest.mark.parametrize("case", CASES)
def test_p_is_uniform_without_signal(case):
    simulate, n, options = CASES[case]
    assert_uniform(*p_values(simulate, n, **options))


@pytest.mark.parametrize("case", WRONG)
def test_wrong_nulls_reject_too_often(case):
    simulate, n, options = WRONG[case]
    p, family = p_values(simulate, n, **options)
    assert rejects(p) > 0.08
    assert rejects(family) > 0.08
    with pytest.raises(AssertionError):
        assert_uniform(p, family)


@pytest.mark.parametrize("alpha", [30.0, None])
@pytest.mark.parametrize(
    ("simulate", "options"),
    [(white, {}), (slow, {"scheme": "circular", "runs": RUNS}), (slow, {"scheme": "block", "block": 30, "runs": RUNS})],
    ids=["shuffle", "circular", "block"],
)
def test_signal_is_found(simulate, options, alpha):
    def with_signal(rng):
        X, Y = simulate(rng)
        Y[:, :5] += X[:, :1]
        return X, Y

    p, family = p_values(with_signal, 10, alpha, **options)
    assert rejects(p[:, :5]) > 0.9
    assert rejects(p[:, 5:]) < 0.2
    assert rejects(family) == 1
