"""Crossnobis and Poisson dissimilarities against loops over folds and pairs."""

import itertools
import warnings

import numpy as np
import pytest

from neuralign.align.geometry import crossvalidated
from neuralign.align.geometry.crossvalidated import (
    crossnobis,
    fold_means,
    poisson,
    poisson_cv,
    positive_inverse,
    whitening_factor,
)

N_FOLDS, N_STIMULI, N_FEATURES = 4, 7, 11


def patterns(n_folds=N_FOLDS, n_stimuli=N_STIMULI, n_features=N_FEATURES, seed=0):
    rng = np.random.default_rng(seed)
    fold_offsets = 30 * rng.normal(size=(n_folds, 1, n_features))
    return rng.normal(size=(n_stimuli, n_features)) + rng.normal(size=(n_folds, n_stimuli, n_features)) + fold_offsets


def some_precision(n_features=N_FEATURES, seed=0):
    root = np.random.default_rng(seed).normal(size=(n_features, 2 * n_features))
    return root @ root.T / n_features


def by_loops(folds, precision_of=None):
    """Mean over ordered pairs of different folds, pair by pair of stimuli, of products of differences."""
    n_folds, n_stimuli, n_features = folds.shape
    vector = []
    for i, j in itertools.combinations(range(n_stimuli), 2):
        products = []
        for m, n in itertools.permutations(range(n_folds), 2):
            one, other = folds[m, i] - folds[m, j], folds[n, i] - folds[n, j]
            if np.isfinite(one).all() and np.isfinite(other).all():
                between = np.eye(n_features) if precision_of is None else precision_of(m, n)
                products.append(one @ between @ other)
        vector.append(np.mean(products) / n_features if products else np.nan)
    return np.array(vector)


def with_gaps(folds, kind):
    """Stimuli that some folds lack: later repeats (few patterns of presence), or at random (many)."""
    folds = folds.copy()
    if kind == "nested":
        folds[3, 2:4] = np.nan
        folds[2:, 5] = np.nan
    else:
        absent = np.random.default_rng(3).random(folds.shape[:2]) < 0.35
        folds[absent] = np.nan
    return folds


def poisson_by_loops(X, rate=1.0, weight=0.1):
    rates = (X + rate * weight) / (1 + weight)
    return np.array(
        [
            np.nanmean((rates[i] - rates[j]) * (np.log(rates[i]) - np.log(rates[j])))
            for i, j in itertools.combinations(range(len(X)), 2)
        ]
    )


# ------------------------------------------------------------------------------------------------- crossnobis


@pytest.mark.parametrize("precision", [None, "diagonal", "full"])
@pytest.mark.parametrize("gaps", [None, "nested", "random"])
def test_crossnobis_is_the_mean_over_pairs_of_folds(precision, gaps):
    folds = patterns() if gaps is None else with_gaps(patterns(), gaps)
    given = {"diagonal": np.diag(some_precision()), "full": some_precision(), None: None}[precision]
    matrix = np.diag(given) if precision == "diagonal" else given
    expected = by_loops(folds, None if precision is None else lambda m, n: matrix)
    assert np.isnan(expected).any() == (gaps == "random")
    np.testing.assert_allclose(crossnobis(folds, given), expected, rtol=1e-10, atol=1e-12)


def test_both_ways_to_deal_with_missing_stimuli_agree():
    folds = with_gaps(patterns(), "random")
    present = np.isfinite(folds).all(2)
    assert len(np.unique(present, axis=1).T) > N_FOLDS  # so that crossnobis goes over pairs of folds
    np.testing.assert_allclose(crossvalidated._by_sums(folds, present, None), crossnobis(folds), atol=1e-12)


@pytest.mark.parametrize("gaps", [None, "nested", "random"])
def test_precision_per_fold(gaps):
    folds = patterns() if gaps is None else with_gaps(patterns(), gaps)
    precisions = [some_precision(seed=m) for m in range(N_FOLDS)]
    covariances = [np.linalg.inv(one) for one in precisions]
    expected = by_loops(folds, lambda m, n: np.linalg.inv((covariances[m] + covariances[n]) / 2))
    np.testing.assert_allclose(crossnobis(folds, precisions), expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(crossnobis(folds, np.stack(precisions)), expected, rtol=1e-9, atol=1e-11)


def test_diagonal_precision_per_fold():
    folds = patterns()
    variances = np.random.default_rng(5).uniform(0.5, 2, size=(N_FOLDS, N_FEATURES))
    expected = by_loops(folds, lambda m, n: np.diag(2 / (variances[m] + variances[n])))
    np.testing.assert_allclose(crossnobis(folds, list(1 / variances)), expected, rtol=1e-10)
    mixed = [np.diag(1 / variances[0]), *(1 / variances[1:])]
    np.testing.assert_allclose(crossnobis(folds, mixed), expected, rtol=1e-9)


def test_equal_precisions_per_fold_are_one_precision():
    folds, precision = patterns(), some_precision()
    np.testing.assert_allclose(crossnobis(folds, [precision] * N_FOLDS), crossnobis(folds, precision), rtol=1e-9)


def test_crossnobis_of_pure_noise_is_zero_on_average():
    """With correlated noise and its precision; within four standard errors, while the biased distance is far off."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 20))
    precision = np.linalg.inv(root @ root.T)
    means, biased = [], []
    for _ in range(200):
        folds = rng.normal(size=(3, 10, 20)) @ root.T
        means.append(crossnobis(folds, precision).mean())
        difference = folds.mean(0)[0] - folds.mean(0)[1]
        biased.append(difference @ precision @ difference / 20)
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(200)
    assert np.mean(biased) > 0.5


def test_crossnobis_estimates_the_true_distance():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(6, 30))
    expected = ((true[:, None] - true) ** 2).mean(2)[np.triu_indices(6, 1)]
    found = np.stack([crossnobis(true + rng.normal(size=(3, 6, 30))) for _ in range(300)])
    assert (np.abs(found.mean(0) - expected) < 4.5 * found.std(0) / np.sqrt(300)).all()


def test_nothing_is_cut_off_at_zero():
    vector = crossnobis(np.random.default_rng(0).normal(size=(2, 30, 5)))
    assert 0.4 < (vector < 0).mean() < 0.6


def test_alike_patterns_keep_their_digits():
    """Two stimuli that differ by 1e-7 in every fold, at an offset of a thousand, in float64 and in float32."""
    folds = patterns() + 1000
    folds[:, 1] = folds[:, 0] + 1e-7 * np.random.default_rng(1).normal(size=(N_FOLDS, N_FEATURES))
    np.testing.assert_allclose(crossnobis(folds)[0], by_loops(folds)[0], rtol=1e-4)
    folds[2, 1] = np.nan
    np.testing.assert_allclose(crossnobis(folds)[0], by_loops(folds)[0], rtol=1e-4)
    folds[:, 1] = folds[:, 0]
    assert crossnobis(folds)[0] == 0
    assert crossnobis(folds.astype(np.float32))[0] == 0


@pytest.mark.parametrize("gaps", [None, "nested"])
def test_float32_under_offsets(gaps):
    folds = (patterns(n_features=300) + 100).astype(np.float32)
    if gaps:
        folds = with_gaps(folds, gaps)
    precision = some_precision(300)
    for given in (None, precision):
        expected = by_loops(folds.astype(float), None if given is None else lambda m, n: precision)
        np.testing.assert_allclose(crossnobis(folds, given), expected, rtol=1e-4, atol=1e-5 * np.nanstd(expected))


def test_input_is_not_written_to():
    folds, precision = with_gaps(patterns(), "nested"), some_precision()
    copies = folds.copy(), precision.copy()
    crossnobis(folds, precision)
    crossnobis(folds, [precision] * N_FOLDS)
    poisson_cv(np.abs(folds))
    np.testing.assert_array_equal(folds, copies[0])
    np.testing.assert_array_equal(precision, copies[1])


def test_pairs_that_share_one_fold_are_unknown():
    folds = patterns(n_folds=3)
    folds[1:, 0] = np.nan
    vector = crossnobis(folds)
    assert np.isnan(vector[: N_STIMULI - 1]).all() and np.isfinite(vector[N_STIMULI - 1 :]).all()


def test_tensors_give_what_arrays_give():
    torch = pytest.importorskip("torch")
    for gaps in (None, "nested", "random"):
        folds = patterns() if gaps is None else with_gaps(patterns(), gaps)
        for precision in (None, some_precision(), [some_precision()] * N_FOLDS):
            expected = crossnobis(folds, precision)
            np.testing.assert_allclose(crossnobis(torch.tensor(folds), precision), expected, rtol=1e-9, atol=1e-12)
            single = crossnobis(torch.tensor(folds, dtype=torch.float32), precision)
            np.testing.assert_allclose(single, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "folds, precision, message",
    [
        (np.ones((3, 4)), None, r"shape \(3, 4\); expected \(fold, stimulus, feature\)"),
        (np.ones((1, 4, 5)), None, "1 fold; cross-validation needs at least 2"),
        (np.ones((2, 4, 5)), np.ones((4, 4)), r"shape \(4, 4\); expected the precision of 5 features, \(5, 5\)"),
        (np.ones((2, 4, 5)), np.ones((4, 5)), r"shape \(4, 5\)"),
        (np.ones((2, 4, 2)), np.array([[1.0, 2], [2, 1]]), "not positive definite .smallest eigenvalue -1"),
        (np.ones((2, 4, 2)), np.array([1.0, 0]), "smallest eigenvalue 0"),
        (np.ones((2, 4, 2)), np.array([[1.0, 2], [0, 1]]), "not symmetric"),
        (np.ones((2, 4, 2)), np.array([1.0, np.nan]), "1 values that are not finite"),
        (np.ones((2, 4, 2)), [np.ones(2)] * 3, "3 precisions for 2 folds"),
        (np.ones((2, 4, 2)), [np.ones(2), np.ones(3)], r"noise\[1\] has shape \(3,\)"),
    ],
)
def test_bad_input(folds, precision, message):
    with pytest.raises(ValueError, match=message):
        crossnobis(folds, precision)


def test_positive_inverse_and_whitening_factor():
    precision = some_precision()
    np.testing.assert_allclose(positive_inverse(precision), np.linalg.inv(precision), rtol=1e-9, atol=1e-12)
    factor = whitening_factor(precision, N_FEATURES)
    np.testing.assert_allclose(factor @ factor.T, precision, rtol=1e-12, atol=1e-12)
    assert whitening_factor(None, 3) is None


# ------------------------------------------------------------------------------------------------- fold means


def test_fold_means_of_ragged_presentations():
    rng = np.random.default_rng(0)
    labels = list("aabacbbca")
    folds = [1, 1, 1, 2, 2, 2, 2, 3, 3]
    X = rng.normal(size=(9, 4))
    X[1, 2] = np.nan
    means, names, fold_names = fold_means(X, labels, folds)
    assert names == ["a", "b", "c"] and fold_names == [1, 2, 3]
    for m, fold in enumerate(fold_names):
        for k, name in enumerate(names):
            rows = [r for r in range(9) if labels[r] == name and folds[r] == fold]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = np.nanmean(X[rows], axis=0) if rows else np.full(4, np.nan)
            np.testing.assert_allclose(means[m, k], expected, rtol=1e-14)


def test_one_presentation_per_cell_in_any_order():
    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    labels, folds = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    order = np.random.default_rng(1).permutation(12)
    means, names, fold_names = fold_means(X[order], labels[order], folds[order])
    assert means.dtype == np.float32
    for m, fold in enumerate(fold_names):
        for k, name in enumerate(names):
            np.testing.assert_array_equal(means[m, k], X[(labels == name) & (folds == fold)][0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, int])
def test_one_presentation_at_most_per_cell(dtype):
    X = np.random.default_rng(0).normal(size=(5, 3), scale=9).astype(dtype)
    for given in (X, pytest.importorskip("torch").tensor(X)):
        means, names, folds = fold_means(given, list("abcba"), [0, 0, 0, 1, 2])
        means = np.asarray(means)
        assert means.dtype == (np.float32 if dtype == np.float32 else np.float64)
        assert (names, folds) == (["a", "b", "c"], [0, 1, 2])
        np.testing.assert_array_equal(means[[0, 0, 0, 1, 2], [0, 1, 2, 1, 0]], X)
        assert np.isnan(means).sum() == 4 * 3


def test_twelve_repeats_of_labels_of_one_letter_are_twelve_folds():
    labels = np.tile(np.array(["a", "b", "c"]), 12)
    means, names, folds = fold_means(np.arange(36.0)[:, None], labels)
    assert folds == list(range(12)) and names == ["a", "b", "c"]
    np.testing.assert_array_equal(means[:, :, 0], np.arange(36).reshape(12, 3))


def test_fold_means_of_tensors():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4))
    X[3] = np.nan
    X[5, 1] = np.nan
    labels, folds = rng.integers(4, size=30), rng.integers(3, size=30)
    expected, names, _ = fold_means(X, labels, folds)
    found, found_names, _ = fold_means(torch.tensor(X), labels, folds)
    assert names == found_names
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)


def test_labels_and_folds_must_fit():
    with pytest.raises(ValueError, match=r"labels has shape \(3,\); expected one for each of the 4 rows"):
        fold_means(np.ones((4, 2)), list("abc"))
    with pytest.raises(ValueError, match=r"folds has shape \(5,\)"):
        fold_means(np.ones((4, 2)), list("abca"), np.ones(5))


@pytest.mark.parametrize("missing", [None, np.nan])
@pytest.mark.parametrize("argument", ["labels", "folds"])
def test_presentations_without_a_stimulus_or_fold_are_counted(argument, missing):
    given = {"labels": list("abab"), "folds": list("xxyy")}
    given[argument] = [given[argument][0], missing, missing, given[argument][3]]
    with pytest.raises(ValueError, match=rf"{argument} is missing \(NaN or None\) for 2 of 4 .*notna\({argument}\)"):
        fold_means(np.ones((4, 2)), **given)
    numbers = {"labels": np.array([0, 1, 0, 1.0]), "folds": np.array([0, 0, 1, 1.0])}
    numbers[argument][1] = np.nan
    with pytest.raises(ValueError, match=f"{argument} is missing"):
        fold_means(np.ones((4, 2)), **numbers)


# ---------------------------------------------------------------------------------------------------- Poisson


@pytest.mark.parametrize("prior", [(1.0, 0.1), (2.0, 0.5)])
def test_poisson(prior):
    counts = np.random.default_rng(0).poisson(4, size=(8, 15))
    np.testing.assert_allclose(poisson(counts, prior), poisson_by_loops(counts, *prior), rtol=1e-10)


def test_poisson_of_patterns_with_gaps():
    counts = np.random.default_rng(0).poisson(4, size=(8, 15)).astype(float)
    counts[2, :5] = counts[3, 7] = np.nan
    counts[4] = np.nan
    counts[5, 1:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = poisson_by_loops(counts)
    np.testing.assert_allclose(poisson(counts), expected, rtol=1e-10)
    assert np.isnan(expected).sum() == 8  # those of stimulus 4, and that of 2 with 5, which share no feature


def test_poisson_of_alike_patterns():
    """Rates that differ by a millionth at a thousand: kept to four digits, and never below zero."""
    rates = np.random.default_rng(0).uniform(900, 1100, size=(3, 50))
    rates[1] = rates[0] + 1e-6 * np.random.default_rng(1).normal(size=50)
    np.testing.assert_allclose(poisson(rates)[0], poisson_by_loops(rates)[0], rtol=1e-4)
    rates[1] = rates[0]
    assert poisson(rates)[0] == 0


def poisson_cv_by_loops(folds, rate=1.0, weight=0.1):
    def rates(x):
        return (x + rate * weight) / (1 + weight)

    vector = []
    for i, j in itertools.combinations(range(folds.shape[1]), 2):
        each = []
        for m in range(len(folds)):
            others = np.delete(folds, m, axis=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                train = [rates(np.nanmean(others[:, k], axis=0)) for k in (i, j)]
            test = [np.log(rates(folds[m, k])) for k in (i, j)]
            each.append(((train[0] - train[1]) * (test[0] - test[1])).mean())
        known = np.isfinite(each)
        vector.append(np.mean(np.array(each)[known]) if known.any() else np.nan)
    return np.array(vector)


@pytest.mark.parametrize("gaps", [None, "nested", "random"])
def test_cross_validated_poisson_is_the_mean_over_all_folds(gaps):
    counts = np.random.default_rng(0).poisson(4, size=(N_FOLDS, N_STIMULI, N_FEATURES)).astype(float)
    counts = counts if gaps is None else with_gaps(counts, gaps)
    expected = poisson_cv_by_loops(counts)
    np.testing.assert_allclose(poisson_cv(counts), expected, rtol=1e-10, atol=1e-12)


def test_cross_validated_poisson_of_pure_noise():
    rng = np.random.default_rng(0)
    means = [poisson_cv(rng.poisson(5, size=(4, 10, 20))).mean() for _ in range(300)]
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(300)


@pytest.mark.parametrize("function, shape", [(poisson, (4, 5)), (poisson_cv, (2, 4, 5))])
def test_bad_counts(function, shape):
    counts = np.ones(shape)
    counts[0, 1] = -1
    with pytest.raises(ValueError, match="negative values; Poisson methods take counts"):
        function(counts)
    with pytest.raises(ValueError, match="leaves zero counts at zero"):
        function(np.zeros(shape), (0.0, 0.1))
    with pytest.raises(ValueError, match="neither below zero"):
        function(np.ones(shape), (1.0, -0.1))


# ------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("n_folds", [4, 12])
def test_ragged_folds_take_a_product_per_fold_and_set_of_folds(n_folds, monkeypatch):
    """And not one per pair of folds: with stimuli of three different numbers of repeats, six products more."""
    calls = []
    monkeypatch.setattr(crossvalidated, "product", lambda a, b: calls.append(1) or a @ b.T)
    folds = patterns(n_folds)
    crossnobis(folds)
    assert len(calls) == n_folds + 1
    calls.clear()
    folds[-1, 2:4] = np.nan
    folds[-2:, 5] = np.nan
    crossnobis(folds)
    assert len(calls) == n_folds + 6


def test_no_array_over_pairs_of_features():
    """Without a precision, nothing of the size of features by features: here 128 MB."""
    import tracemalloc

    folds = np.random.default_rng(0).normal(size=(3, 10, 4000))
    tracemalloc.start()
    crossnobis(folds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * folds.nbytes
