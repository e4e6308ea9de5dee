import warnings

import h5py
import numpy as np
import pytest

from neuralign.align.multiple import max_statistic_p
from neuralign.align.permutation import permutation_test
from neuralign.align.schemes import block_shuffles, circular_shifts, shuffles
from neuralign.datasets import from_arrays
from neuralign.encoders.linear.ridge import RidgeCV

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

ALPHAS = np.logspace(-1, 3, 5)


def simulate(n=60, p=6, v=4, seed=0, signal=0.3):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    Y = signal * X @ rng.standard_normal((p, v)) + rng.standard_normal((n, v))
    return X, Y


def refitted(X, Y, orders, groups=None, alphas=ALPHAS, score="r"):
    """Scores (order, unit) of an encoder fitted to each order from the start, and those of the given one."""
    rows = [np.arange(len(X)), *orders]
    scores = np.stack([RidgeCV(alphas, score=score).fit(X, Y[order], groups).cv_score_ for order in rows])
    return scores[0], scores[1:]


@pytest.mark.parametrize("score", ["r", "r2"])
@pytest.mark.parametrize("alpha", [10.0, None])
def test_equals_an_encoder_fitted_to_each_permutation(alpha, score):
    X, Y = simulate()
    grid = ALPHAS if alpha is None else [alpha]
    design = RidgeCV(score=score).design(X)
    fixed_or_grid = {"alphas": grid} if alpha is None else {"alpha": alpha}
    test = permutation_test(design, Y, **fixed_or_grid, n=40, score=score, seed=3, keep_null=True)
    observed, null = refitted(X, Y, shuffles(60, None, 40, 3), alphas=grid, score=score)
    np.testing.assert_allclose(test.observed, observed, atol=1e-9)
    np.testing.assert_allclose(test.null, null, atol=1e-9)
    np.testing.assert_allclose(test.p, (1 + (null >= observed).sum(0)) / 41, atol=1e-12)
    np.testing.assert_allclose(test.p_family, (1 + (null.max(1)[:, None] >= observed).sum(0)) / 41, atol=1e-12)
    np.testing.assert_allclose(test.p_family, max_statistic_p(observed, null))
    np.testing.assert_allclose(test.null_mean, null.mean(0), atol=1e-9)
    np.testing.assert_allclose(test.null_std, null.std(0, ddof=1), atol=1e-9)
    assert test.n == 40
    assert permutation_test(design, Y, 1.0, n=5).null is None


@pytest.mark.parametrize(
    ("scheme", "orders"),
    [
        ({"scheme": "shuffle"}, lambda runs: shuffles(60, runs, 30, 5)),
        ({"scheme": "block", "block": 3}, lambda runs: block_shuffles(60, 3, runs, 30, 5)),
        ({"scheme": "circular"}, lambda runs: circular_shifts(60, runs, 1, 30, 5)),
        ({"scheme": "circular", "min_shift": 4}, lambda runs: circular_shifts(60, runs, 4, 30, 5)),
    ],
)
def test_rows_of_responses_move_within_runs(scheme, orders):
    X, Y = simulate()
    runs = np.repeat(np.arange(5), 12)
    design = RidgeCV().design(X, runs)
    test = permutation_test(design, Y, 10.0, **scheme, runs=runs, n=30, seed=5, keep_null=True)
    _, null = refitted(X, Y, orders(runs), runs, [10.0])
    np.testing.assert_allclose(test.null, null, atol=1e-9)
    features = permutation_test(X, Y, 10.0, **scheme, runs=runs, n=30, seed=5)  # whole runs are left out by default
    np.testing.assert_array_equal(features.p, test.p)


@pytest.mark.parametrize(("n_runs", "groups"), [(1, None), (3, np.repeat(np.arange(3), 20))])
def test_features_get_as_many_folds_as_there_are_runs(n_runs, groups):
    X, Y = simulate()
    runs = np.repeat(np.arange(n_runs), 60 // n_runs)
    expected = RidgeCV([10.0], cv=5 if groups is None else 3).fit(X, Y, groups).cv_score_
    np.testing.assert_allclose(permutation_test(X, Y, 10.0, runs=runs, n=9).observed, expected, atol=1e-12)


def test_an_alpha_for_each_unit():
    X, Y = simulate(v=6)
    alpha = np.array([1.0, 100.0, 1.0, np.nan, 5.0, 100.0])
    with pytest.warns(UserWarning, match="1 of 6 units have no score"):
        test = permutation_test(X, Y, alpha, n=20, keep_null=True)
    for unit in (0, 1, 2, 4, 5):
        alone = permutation_test(X, Y[:, unit], alpha[unit], n=20, keep_null=True)
        np.testing.assert_allclose(test.null[:, unit], alone.null[:, 0], atol=1e-12)
        assert test.p[unit] == alone.p[0] == alone.p_family[0]
    assert np.isnan([test.observed[3], test.p[3], test.p_family[3], test.null_mean[3], test.null_std[3]]).all()
    np.testing.assert_array_equal(permutation_test(X, Y, 5.0, n=9).p, permutation_test(X, Y, [5.0], n=9).p)


@pytest.mark.parametrize("alpha", [10.0, None])
def test_signal_is_found_and_noise_is_not(alpha):
    X, Y = simulate(signal=1.0)
    Y[:, 2:] = np.random.default_rng(9).standard_normal((60, 2))
    test = permutation_test(X, Y, alpha, n=99)
    np.testing.assert_array_equal(test.p[:2], 0.01)
    np.testing.assert_array_equal(test.p_family[:2], 0.01)
    assert (test.p[2:] > 0.05).all()


@pytest.mark.parametrize("alpha", [10.0, None])
def test_units_without_score_are_nan_with_one_warning(alpha):
    X, Y = simulate(v=5)
    Y[3, 1] = np.nan
    Y[:, 3] = 0.1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        test = permutation_test(X, Y, alpha, n=19)
    assert [str(w.message)[:31] for w in caught] == ["2 of 5 units have no score, as "]
    assert caught[0].filename == __file__
    for values in (test.observed, test.p, test.p_family, test.null_mean, test.null_std):
        np.testing.assert_array_equal(np.isnan(values), [False, True, False, True, False])
    without = permutation_test(X, Y[:, [0, 2, 4]], alpha, n=19)
    np.testing.assert_array_equal(test.p_family[[0, 2, 4]], without.p_family)


def test_permutation_without_score_counts_as_one_that_reaches():
    X, Y = simulate()
    Y[:, 0] = 0.0
    Y[[5, 30], 0] = [1.0, 1.0]  # in two folds as it is; together in one fold in some orders, unscored there
    with pytest.warns(UserWarning, match="permutations leave units without a score"):
        test = permutation_test(X, Y, 10.0, n=50, keep_null=True)
    unscored = np.isnan(test.null[:, 0])
    assert 0 < unscored.sum() < 50
    reached = unscored | (test.null[:, 0] >= test.observed[0])
    assert test.p[0] == (1 + reached.sum()) / 51
    assert test.null_mean[0] == pytest.approx(np.nanmean(test.null[:, 0]))
    with pytest.warns(UserWarning, match="larger than every score"):
        np.testing.assert_allclose(test.p_family, max_statistic_p(test.observed, test.null))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_order_that_changes_nothing_counts(dtype):
    X, _ = simulate(v=1)
    Y = np.repeat(np.random.default_rng(0).standard_normal((5, 3)), 12, axis=0).astype(dtype)
    X = np.repeat(X[:5], 12, axis=0).astype(dtype)  # within runs all rows are the same
    runs = np.repeat(np.arange(5), 12)
    cv = [(np.flatnonzero(runs < 3), np.flatnonzero(runs >= 3)), (np.flatnonzero(runs >= 2), np.flatnonzero(runs < 2))]
    test = permutation_test(RidgeCV(cv=cv).design(X), Y, 1.0, runs=runs, n=50)
    np.testing.assert_array_equal(test.p, 1.0)
    np.testing.assert_array_equal(test.p_family, 1.0)


def test_seed():
    X, Y = simulate()
    one, same, other = (permutation_test(X, Y, 10.0, n=30, seed=seed).null_mean for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()


def test_a_design_serves_any_number_of_tests():
    """One-hot features in float64, whose axes the engine turns among themselves."""
    X, Y = np.eye(10)[np.tile(np.arange(10), 20)], np.random.default_rng(0).standard_normal((200, 4))
    design = RidgeCV().design(X)
    first, *others = (permutation_test(design, Y, 10.0, n=9) for _ in range(3))
    for other in others:
        np.testing.assert_array_equal(other.observed, first.observed)
        np.testing.assert_array_equal(other.null_mean, first.null_mean)
    np.testing.assert_allclose(first.observed, RidgeCV([10.0]).fit(X, Y).cv_score_, atol=1e-9)


def test_responses_anywhere(tmp_path):
    X, Y = simulate(v=7)
    expected = permutation_test(X, Y, 10.0, n=20).null_mean
    np.save(tmp_path / "Y.npy", Y)
    brain = from_arrays(Y, stimuli=[f"image{k}" for k in range(60)])
    with h5py.File(tmp_path / "Y.h5", "w") as file:
        file["Y"] = Y
        for source in (np.load(tmp_path / "Y.npy", mmap_mode="r"), file["Y"], brain, Y.tolist()):
            found = permutation_test(X, source, 10.0, n=20, max_memory=50_000).null_mean
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_float32_null_is_float32():
    X, Y = simulate()
    test = permutation_test(X.astype(np.float32), Y, 10.0, n=20, keep_null=True)
    assert test.null.dtype == np.float32 and test.observed.dtype == np.float64
    exact = permutation_test(X, Y, 10.0, n=20, keep_null=True)
    np.testing.assert_allclose(test.null, exact.null, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": "blocks"}, "scheme"),
        ({"scheme": "block"}, "needs the number of rows in a block"),
        ({"block": 3}, 'block=3 was given with scheme="shuffle"; it goes with scheme="block"'),
        ({"min_shift": 3, "scheme": "block", "block": 3}, 'it goes with scheme="circular"'),
        ({"score": "rho"}, "score"),
        ({"alphas": [1.0]}, "alpha and alphas were both given"),
        ({"alpha": [1.0, 2.0]}, r"alpha has shape \(2,\)"),
        ({"alpha": 0.0}, "alpha holds 0"),
        ({"alpha": np.nan}, "alpha holds nothing but NaN"),
        ({"alpha": None, "alphas": [-1.0]}, "alphas holds -1"),
        ({"Y": np.zeros((50, 2))}, "Y has 50 rows and the design 60"),
        ({"Y": np.full((60, 2), np.inf)}, "Y contains infinity in unit 0"),
        ({"runs": np.zeros(50)}, r"runs has shape \(50,\)"),
        ({"n": 0}, "n_permutations=0"),
        ({"scheme": "circular", "n": 60}, "there are 59 circular shifts"),
        ({"design": RidgeCV()}, "design is an encoder .RidgeCV."),
    ],
)
def test_bad_input_is_named(changes, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        permutation_test(**{"design": RidgeCV().design(X), "Y": Y, "alpha": 1.0, "n": 10} | changes)


def test_alphas_chosen_on_these_responses_are_not_taken_by_accident():
    X, Y = simulate()
    with pytest.raises(ValueError, match="pass a grid as alphas, to choose anew in every permutation"):
        permutation_test(RidgeCV().fit(X, Y), Y)
