"""Kernel analysis against explicit refits, explicit projections and data whose classes are known to be there or not."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from neuralign.align.similarity import similarity
from neuralign.align.similarity.kernel_analysis import PENALTIES, SCALES, kernel_analysis


def classes(seed, n=15, p=4, k=3, separation=2.0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(k), n)
    return rng.normal(size=(n * k, p)) + separation * rng.normal(size=(k, p))[labels], labels


def resampled(X, labels, seed, share=0.8):
    """The rows of the first resample: as many of every class, in the order of the classes."""
    rng = np.random.default_rng(seed)
    size = int(share * np.bincount(labels).min())
    rows = np.concatenate([rng.choice(np.flatnonzero(labels == k), size, replace=False) for k in np.unique(labels)])
    return X[rows], labels[rows]


def one_against_rest(labels):
    targets = (labels[:, None] == np.unique(labels)).astype(float)
    return (targets - targets.mean(0)) / targets.std(0)


def kernels(X, scales):
    D = cdist(X, X)
    median = np.median(D[np.triu_indices(len(X), 1)])
    return [np.exp(-(D**2) / (2 * (s * median) ** 2)) for s in scales]


def test_leave_one_out_by_refits():
    """Kernel ridge regression fitted without each stimulus in turn, at three widths and four penalties."""
    X, labels = classes(0, n=10)
    scales, penalties = np.array([0.3, 1.0, 3.0]), np.array([1e-2, 1e-1, 1.0, 10.0])
    found = kernel_analysis(X, labels, scales=scales, penalties=penalties, resamples=1, seed=5)
    X, labels = resampled(X, labels, 5)
    Y = one_against_rest(labels)
    n = len(X)
    least = np.full(4, np.inf)
    for K in kernels(X, scales):
        for k, penalty in enumerate(penalties):
            residual = np.empty_like(Y)
            for i in range(n):
                train = np.delete(np.arange(n), i)
                weights = np.linalg.solve(K[np.ix_(train, train)] + penalty * np.eye(n - 1), Y[train])
                residual[i] = Y[i] - K[i, train] @ weights
            least[k] = min(least[k], (residual**2).mean())
    np.testing.assert_allclose(found.complexity, 1 / penalties[::-1])
    np.testing.assert_allclose(found.precision, 1 - least[::-1], atol=1e-10)
    place = np.log(found.complexity)
    height = (found.precision[1:] + found.precision[:-1]) / 2
    assert found.area == pytest.approx(height @ np.diff(place) / (place[-1] - place[0]), abs=1e-12)
    assert np.isnan(found.sd)


def test_projections_by_loop():
    X, labels = classes(1, n=10)
    scales = np.array([0.5, 2.0])
    found = kernel_analysis(X, labels, "2013", scales=scales, resamples=1, seed=3)
    X, labels = resampled(X, labels, 3)
    Y = one_against_rest(labels)
    errors = np.full(len(X) + 1, np.inf)
    for K in kernels(X, scales):
        U = np.linalg.svd(K)[0]
        for d in range(len(X) + 1):
            left = Y - U[:, :d] @ U[:, :d].T @ Y
            errors[d] = min(errors[d], (left**2).mean())
    np.testing.assert_allclose(found.precision, 1 - errors, atol=1e-9)
    assert found.precision[0] == pytest.approx(0, abs=1e-12)
    assert found.precision[-1] == pytest.approx(1, abs=1e-9)
    assert (np.diff(found.precision) > -1e-12).all()


def test_resamples_are_averaged_and_hold_as_many_of_every_class():
    X, labels = classes(2, n=12)
    X, labels = np.vstack([X, X[:6] + 0.1]), np.concatenate([labels, labels[:6]])
    found = kernel_analysis(X, labels, resamples=4, seed=1)
    assert found.precisions.shape == (4, 56)
    np.testing.assert_allclose(found.precision, found.precisions.mean(0))
    place = np.log(found.complexity)
    areas = [np.trapezoid(curve, place) / np.ptp(place) for curve in found.precisions]
    assert found.area == pytest.approx(np.mean(areas))
    assert found.sd == pytest.approx(np.std(areas, ddof=1))
    # 9 of 12 stimuli of the smaller classes: curves of version 2013 run over 0 to 27 components.
    assert kernel_analysis(X, labels, "2013", resamples=1).precision.shape == (28,)
    again = kernel_analysis(X, labels, resamples=4, seed=1)
    np.testing.assert_array_equal(again.precisions, found.precisions)
    assert (kernel_analysis(X, labels, resamples=4, seed=2).precisions != found.precisions).any()


def test_the_measure_is_the_area():
    X, labels = classes(3)
    assert similarity("kernel-analysis", X, labels, seed=4) == kernel_analysis(X, labels, seed=4).area
    names = np.array(["ant", "bee", "cow"])[labels]
    by_projection = kernel_analysis(X, labels, "2013", seed=4).area
    assert similarity("kernel-analysis", X, names, version="2013", seed=4) == by_projection
    assert len(SCALES) == 32
    assert (SCALES[0], SCALES[-1]) == (pytest.approx(0.1), pytest.approx(10))
    assert len(PENALTIES) == 56
    assert (PENALTIES[0], PENALTIES[-1]) == (pytest.approx(1e-4), pytest.approx(1e3))


def test_classes_that_are_there_and_classes_that_are_not():
    """Leave-one-out precision stays at 0 for labels without meaning; a projection in sample does not."""
    X, labels = classes(4, n=20, separation=20.0)
    clear = kernel_analysis(X, labels, resamples=3)
    assert clear.precision.max() > 0.95
    assert clear.precision[0] < 0.2
    meaningless = [kernel_analysis(*classes(k, n=20, separation=0.0), resamples=3) for k in range(10)]
    assert abs(np.mean([found.area for found in meaningless])) < 0.02
    in_sample = kernel_analysis(*classes(5, n=20, separation=0.0), "2013", resamples=3)
    assert in_sample.area > 0.4


def test_options_are_checked():
    X, labels = classes(0)
    with pytest.raises(ValueError, match="version='2015' is unknown"):
        kernel_analysis(X, labels, "2015")
    with pytest.raises(ValueError, match="scales holds .*; expected positive numbers, at least 1"):
        kernel_analysis(X, labels, scales=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="penalties holds .*; expected positive numbers, at least 2"):
        kernel_analysis(X, labels, penalties=np.array([1.0]))
    with pytest.raises(ValueError, match="resamples=0; expected at least one"):
        kernel_analysis(X, labels, resamples=0)
    with pytest.raises(ValueError, match="class 'rare' of Y has 2 stimuli; resamples of 80 % need three"):
        kernel_analysis(X, ["rare"] * 2 + ["common"] * 43)
    with pytest.raises(ValueError, match="more than half of the pairs of stimuli in X are identical"):
        kernel_analysis(np.vstack([np.zeros((40, 4)), X[:5]]), labels)
