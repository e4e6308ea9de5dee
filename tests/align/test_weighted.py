"""Weighted comparisons and ceilings equal those of RDMs that were resampled one by one."""

import sys
import warnings

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, rankdata, spearmanr

from neuralign.align.compare import compare, rsa_ceiling
from neuralign.align.geometry.pooling import pool
from neuralign.align.inference import resample_weights, weighted, weighted_ceilings, weighted_similarities
from neuralign.align.inference.ceilings import bounds_from_gram, subject_ceilings

PRODUCTS = ["cosine", "pearson", "cosine-whitened", "pearson-whitened"]
RANKS = ["spearman", "rho-a", "tau-a", "tau-b"]


@pytest.fixture(params=["numba", "numpy"])
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(weighted, "compiled", lambda: None)
        monkeypatch.setattr("neuralign.align.inference.ceilings.compiled", lambda: None)
    return request.param


def vectors(n, n_stimuli, seed, ties=False):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=n_stimuli * (n_stimuli - 1) // 2)
    found = common + rng.normal(size=(n, len(common)))
    return np.round(found) if ties else found


def distances(n, n_stimuli, seed):
    """Squared distances of patterns with something in common, so that kernels are positive definite."""
    rng = np.random.default_rng(seed)
    common = np.random.default_rng(99).normal(size=(n_stimuli, 30))
    return np.stack([pdist(common + rng.normal(size=common.shape), "sqeuclidean") for _ in range(n)])


class Explicit:
    """One bootstrap sample in full: repeated stimuli, the pairs of a stimulus with its copy dropped."""

    def __init__(self, sampled, variances=None):
        self.sampled = np.asarray(sampled)
        n = len(self.sampled)
        first, second = np.triu_indices(n, 1)
        apart = self.sampled[first] != self.sampled[second]
        self.first, self.second = first[apart], second[apart]
        contrasts = np.zeros((len(self.first), n))
        every = np.arange(len(self.first))
        contrasts[every, self.first], contrasts[every, self.second] = 1, -1
        sigma = np.eye(n) if variances is None else np.diag(np.asarray(variances)[self.sampled])
        self.v = (contrasts @ sigma @ contrasts.T) ** 2

    def take(self, vector):
        return squareform(vector, checks=False)[self.sampled][:, self.sampled][self.first, self.second]

    def similarity(self, a, b, method):
        """Of vectors over the pairs of the sample."""
        known = ~np.isnan(a) & ~np.isnan(b)
        a, b = a[known], b[known]
        if len(a) < 3:
            return np.nan
        if method == "spearman":
            return spearmanr(a, b).statistic
        if method == "pearson":
            return pearsonr(a, b).statistic
        if method == "rho-a":
            m = len(a)
            return 12 * (rankdata(a) - (m + 1) / 2) @ (rankdata(b) - (m + 1) / 2) / (m**3 - m)
        if method.startswith("tau"):
            first, second = np.triu_indices(len(a), 1)
            one, other = np.sign(a[first] - a[second]), np.sign(b[first] - b[second])
            norm = len(first) if method == "tau-a" else np.sqrt((one**2).sum() * (other**2).sum())
            return (one @ other) / norm
        a, b = self.prepared(a, method), self.prepared(b, method)
        return self.inner(a, b, known, method) / np.sqrt(
            self.inner(a, a, known, method) * self.inner(b, b, known, method)
        )

    @staticmethod
    def prepared(a, method):
        return a - a.mean() if method.startswith("pearson") else a

    def inner(self, a, b, known, method):
        return a @ np.linalg.solve(self.v[np.ix_(known, known)], b) if method.endswith("whitened") else a @ b

    def term(self, a, method):
        """What is averaged over subjects to pool them."""
        known = ~np.isnan(a)
        out = np.full(len(a), np.nan)
        if method in RANKS:
            out[known] = rankdata(a[known])
        else:
            values = self.prepared(a[known], method)
            out[known] = values / np.sqrt(self.inner(values, values, known, method) / known.sum())
        return out

    def ceiling(self, y, subjects, method):
        """Lower and upper bound; `subjects` are positions with repetition."""
        y = np.stack([self.take(row) for row in y])
        terms = np.stack([self.term(row, method) for row in y])
        lower, upper = [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # means of nothing: pairs that no subject knows
            whole = np.nanmean(terms[subjects], 0)
            for i in subjects:
                others = [j for j in subjects if j != i]
                pool = np.nanmean(terms[others], 0) if others else np.full(y.shape[1], np.nan)
                lower.append(self.similarity(pool, y[i], method))
                upper.append(self.similarity(whole, y[i], method))
        return np.mean(lower), np.mean(upper)


def draws(n_items, n, seed):
    return np.random.default_rng(seed).integers(n_items, size=(n, n_items))


def test_weights_are_the_counts_of_the_draws():
    expected = np.stack([np.bincount(sampled, minlength=9) for sampled in draws(9, 20, 4)])
    np.testing.assert_array_equal(resample_weights(9, 20, 4), expected)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", [*PRODUCTS, *RANKS])
def test_similarities_equal_explicit_resampling(method, ties, gaps, engine):
    x, y = vectors(2, 11, 0, ties), vectors(3, 11, 1, ties)
    if gaps:
        x[1, [0, 8, 30]] = y[0, [8, 50]] = np.nan
    found = weighted_similarities(x, y, method, resample_weights(11, 12, 7))
    for sample, sampled in zip(found, draws(11, 12, 7), strict=True):
        explicit = Explicit(sampled)
        expected = [[explicit.similarity(explicit.take(a), explicit.take(b), method) for b in y] for a in x]
        np.testing.assert_allclose(sample, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_stimuli", [4, 6, 12])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("method", ["cosine-whitened", "pearson-whitened"])
def test_whitened_with_variances_and_with_many_copies(method, gaps, n_stimuli):
    """With four stimuli some hold (N + 2) / 2 = 3 copies, where the closed form would divide by zero."""
    x, y = vectors(2, n_stimuli, 0), vectors(2, n_stimuli, 1)
    if gaps and n_stimuli > 4:
        y[1, [2, 5]] = np.nan
    weights, variances = resample_weights(n_stimuli, 40, 3), np.random.default_rng(2).uniform(0.5, 2, n_stimuli)
    assert n_stimuli > 4 or (weights == 3).any()
    for covariance in (None, np.ones(n_stimuli), variances):
        found = weighted_similarities(x, y, method, weights, covariance)
        scored = 0
        for sample, sampled in zip(found, draws(n_stimuli, 40, 3), strict=True):
            explicit = Explicit(sampled, covariance)
            if len(np.unique(sampled)) < 3:
                continue
            expected = [[explicit.similarity(explicit.take(a), explicit.take(b), method) for b in y] for a in x]
            np.testing.assert_allclose(sample, expected, rtol=1e-10, atol=1e-10)
            scored += 1
        assert scored > 20


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", [*PRODUCTS, *RANKS])
def test_ceilings_equal_explicit_resampling(method, ties, both, engine):
    y = vectors(5, 10, 1, ties)
    subjects = draws(5, 8, 3) if both else np.tile(np.arange(5), (8, 1))
    weights = resample_weights(10, 8, 7)
    v = np.stack([np.bincount(row, minlength=5) for row in subjects])
    found = weighted_ceilings(y, method, weights, v if both else None)
    expected = [Explicit(s).ceiling(y, r, method) for s, r in zip(draws(10, 8, 7), subjects, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("method", [*PRODUCTS, *RANKS])
def test_ceilings_with_unknown_pairs(method, everywhere, engine):
    y = vectors(4, 9, 1)
    y[:, [0, 17]] = np.nan
    if not everywhere:
        y[1, [3, 4, 8]] = y[2, 20] = np.nan
    subjects = draws(4, 6, 11)
    v = np.stack([np.bincount(row, minlength=4) for row in subjects])
    found = weighted_ceilings(y, method, resample_weights(9, 6, 2), v)
    expected = [Explicit(s).ceiling(y, r, method) for s, r in zip(draws(9, 6, 2), subjects, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("method", [*PRODUCTS, *RANKS, "bures", "riemannian"])
def test_every_stimulus_and_subject_once_is_the_plain_comparison(method, gaps):
    x, y = (distances(n, 12, seed) for n, seed in ((2, 0), (4, 1)))
    if gaps:
        if method in ("bures", "riemannian"):
            pytest.skip("kernels know all pairs")
        x[0, 5] = y[2, [1, 40]] = np.nan
    once = np.ones((1, 12), int)
    np.testing.assert_allclose(weighted_similarities(x, y, method, once)[0], compare(x, y, method), rtol=1e-12)
    np.testing.assert_allclose(weighted_ceilings(y, method, once)[0], rsa_ceiling(y, method), rtol=1e-12)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("method", PRODUCTS)
def test_one_sample_is_as_one_of_many(method, gaps):
    x, y, weights = vectors(2, 9, 0), vectors(3, 9, 1), resample_weights(9, 10, 0)
    if gaps:
        y[0, 7] = np.nan
    for covariance in (None, np.linspace(0.5, 2, 9)) if method.endswith("whitened") else (None,):
        many = weighted_similarities(x, y, method, weights, covariance)
        one = np.concatenate([weighted_similarities(x, y, method, w[None], covariance) for w in weights])
        np.testing.assert_allclose(one, many, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", PRODUCTS)
def test_no_model_beats_the_upper_bound(method):
    """The pool of all is the best model there is; a step towards it from anywhere else climbs to it from below."""
    y, once = vectors(6, 10, 0), np.ones((1, 10), int)
    upper = weighted_ceilings(y, method, once)[0, 1]
    rng = np.random.default_rng(5)
    tried = rng.normal(size=(200, 45)) * rng.uniform(0, 1, (200, 1)) + y.mean(0) + rng.normal(size=(200, 6)) @ y / 3
    assert weighted_similarities(tried, y, method, once).mean(2).max() < upper
    whitening = np.linalg.inv(Explicit(np.arange(10)).v) if method.endswith("whitened") else np.eye(45)
    centred = y - y.mean(1, keepdims=True) if method.startswith("pearson") else y
    best = (centred / np.sqrt(np.einsum("sp,pq,sq->s", centred, whitening, centred))[:, None]).mean(0)
    assert weighted_similarities(best[None], y, method, once).mean() == pytest.approx(upper, rel=1e-12)


@pytest.mark.parametrize("method", [*PRODUCTS, *RANKS])
def test_copies_of_a_subject_do_not_predict_it(method):
    """Two subjects, one of them twice: the pool of the others of the first is the second alone."""
    y, once = vectors(2, 10, 0), np.ones((1, 10), int)
    lower = weighted_ceilings(y, method, once, np.array([[2, 1]]))[0, 0]
    assert lower == pytest.approx(weighted_similarities(y[:1], y[1:], method, once)[0, 0, 0], rel=1e-12)
    alone = weighted_ceilings(y, method, once, np.array([[3, 0]]))[0]
    assert np.isnan(alone[0]) and alone[1] == pytest.approx(1)


def test_ceilings_from_a_gram_matrix_by_hand():
    gram = np.array([[[1, 0.5, 0.2], [0.5, 1, 0.4], [0.2, 0.4, 1]]])
    bounds = bounds_from_gram(gram, np.ones((1, 3)))[0]
    assert bounds[0, 0] == pytest.approx(0.7 / np.sqrt(2.8))
    assert bounds[2, 1] == pytest.approx(1.6 / np.sqrt(5.2))


@pytest.mark.parametrize("method", [*PRODUCTS, *RANKS])
def test_constant_samples_are_nan_alone(method, engine):
    """A category model of five stimuli misses a category in some samples; others keep their values."""
    model = squareform(((np.arange(5) < 2)[:, None] != (np.arange(5) < 2)).astype(float))[None]
    y, weights = vectors(3, 5, 0), resample_weights(5, 200, 0)
    samples = weighted_similarities(np.concatenate([model, y[:1]]), y, method, weights)
    n_pairs = (weights.sum(1) ** 2 - (weights**2).sum(1)) / 2
    pairs = weights[:, np.triu_indices(5, 1)[0]] * weights[:, np.triu_indices(5, 1)[1]] > 0
    among = [model[0, present] for present in pairs]
    cosine = method.startswith("cosine")
    constant = [(not one.any()) if cosine else np.ptp(one) == 0 if len(one) else True for one in among]
    expected = np.array(constant) | (n_pairs < 3)
    assert 10 < expected.sum() < 100
    np.testing.assert_array_equal(np.isnan(samples[:, 0]).all(1), expected)
    enough = pairs.sum(1) >= 3
    assert np.isfinite(samples[enough, 1]).all()
    assert np.isfinite(subject_ceilings(y, method, weights[enough])).all()


def test_large_offsets_keep_their_digits():
    x, y, weights = vectors(2, 10, 0), vectors(3, 10, 1), resample_weights(10, 20, 0)
    for method in ("pearson", "pearson-whitened"):
        expected = weighted_similarities(x, y, method, weights)
        np.testing.assert_allclose(weighted_similarities(x + 1e6, 1e-6 * y - 3, method, weights), expected, atol=1e-9)


def test_sets_of_stimuli_go_with_every_comparison():
    """Zeros and ones only: the same as taking these stimuli out of the RDMs, with their covariance."""
    x, y = distances(1, 8, 0), distances(3, 8, 1)
    weights = np.array([[1, 1, 0, 1, 1, 0, 1, 1]])
    first, second = np.triu_indices(8, 1)
    kept = np.flatnonzero(weights[0][first] * weights[0][second])
    mixed = np.random.default_rng(0).normal(size=(8, 8))
    covariance = mixed @ mixed.T + 8 * np.eye(8)
    inside = covariance[np.ix_(weights[0] == 1, weights[0] == 1)]
    for method in (*PRODUCTS, *RANKS, "bures", "riemannian"):
        choices = [(None, None)]
        if method in ("cosine-whitened", "pearson-whitened", "riemannian"):
            choices += [(covariance, inside), (np.diag(covariance), np.diag(inside))]
        for whole, part in choices:
            expected = compare(x[:, kept], y[:, kept], method, covariance=part)
            found = weighted_similarities(x, y, method, weights, whole)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
            bounds = weighted_ceilings(y, method, weights, covariance=whole)[0]
            np.testing.assert_allclose(bounds, rsa_ceiling(y[:, kept], method, covariance=part), rtol=1e-9)


@pytest.mark.parametrize("method", ["bures", "riemannian"])
def test_ceilings_over_subjects_of_kernels(method):
    """Copies of subjects in the pool, by repeating them."""
    y, once = distances(3, 7, 1), np.ones((1, 7), int)
    found = weighted_ceilings(y, method, once, np.array([[2, 1, 0]]))[0]
    first, second = y[:1], y[1:2]
    lower = compare(first, second, method).item(), compare(second, first, method).item()
    whole = pool(y[[0, 0, 1]], method)[None]
    upper = compare(whole, y[:2], method)[0]
    np.testing.assert_allclose(found[0], (2 * lower[1] + lower[0]) / 3, rtol=1e-9)
    np.testing.assert_allclose(found[1], (2 * upper[0] + upper[1]) / 3, rtol=1e-9)


def test_what_cannot_be_resampled_says_so():
    x, y, weights = vectors(1, 8, 0), vectors(2, 8, 1), resample_weights(8, 5, 0)
    for method in ("bures", "riemannian"):
        with pytest.raises(ValueError, match="over='subjects'"):
            weighted_similarities(x, y, method, weights)
        with pytest.raises(ValueError, match="over='subjects'"):
            weighted_ceilings(y, method, weights)
    with pytest.raises(ValueError, match="covariance is a matrix"):
        weighted_similarities(x, y, "cosine-whitened", weights, np.eye(8))
    with pytest.raises(ValueError, match=r"subject_weights has shape \(3, 2\); expected \(5, 2\)"):
        weighted_ceilings(y, "cosine", weights, np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"weights has shape \(5, 7\); expected \(sample, 8\)"):
        weighted_ceilings(y, "cosine", weights[:, :7])
    with pytest.raises(ValueError, match="whole numbers"):
        weighted_ceilings(y, "cosine", weights + 0.5)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("method", PRODUCTS)
def test_blocks_of_samples_and_pairs_add_up(method, gaps, monkeypatch):
    x, y, weights = vectors(2, 9, 0), vectors(3, 9, 1), resample_weights(9, 11, 0)
    if gaps:
        x[:, 4] = y[:, 4] = np.nan
    expected = weighted_similarities(x, y, method, weights), weighted_ceilings(y, method, weights)
    for name, size in (("_SAMPLES", 4), ("_PAIRS", 7), ("_SYSTEMS", 200)):
        monkeypatch.setattr(weighted, name, size)
    found = weighted_similarities(x, y, method, weights), weighted_ceilings(y, method, weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def test_without_numba_there_is_no_compiled_module(monkeypatch):
    assert weighted.compiled() is not None
    monkeypatch.delattr("neuralign.align.inference.loops")
    monkeypatch.setitem(sys.modules, "neuralign.align.inference.loops", None)
    assert weighted.compiled() is None
