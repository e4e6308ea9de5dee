"""Faults found in other packages, each with a test that ours is without it.

Each docstring names the fault, the package and the version in which it was seen.
"""

import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit, ShuffleSplit

from neuralign import encoders
from neuralign.align.inference import permutation_p
from neuralign.align.schemes import block_shuffles, circular_shifts, shuffles
from neuralign.encoders import (
    BandedRidgeCV,
    Delays,
    KernelRidgeCV,
    PLSRegression,
    ReducedRankRidge,
    Ridge,
    RidgeCV,
)
from neuralign.encoders.linear.folds import fold_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")

ALPHAS = np.logspace(-1, 4, 6)


def simulate(n=60, p=10, v=6, seed=0, noise=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    Y = X @ rng.standard_normal((p, v)) / p**0.5 + noise * rng.standard_normal((n, v)) + 3.0
    return X.astype(dtype), Y.astype(dtype)


def raised_peaks(setup, *statements):
    """Bytes by which each statement raised the peak of a process of its own, by the operating system's account.

    Memory that a process has freed and not given back would hide what comes after, so that the process is fresh.
    """
    peak = "int(re.search('VmHWM: *([0-9]+)', open('/proc/self/status').read().replace(chr(9), '')).group(1)) * 1024"
    lines = ["import re", "import numpy as np", "from neuralign.encoders import Ridge, RidgeCV", setup]
    for statement in statements:
        lines += [f"before = {peak}", statement, f"print({peak} - before)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]


DATA = """
rng = np.random.default_rng(0)
X = rng.standard_normal(({n}, {p}), dtype=np.float32)
Y = rng.standard_normal(({n}, {v}), dtype=np.float32)
"""


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")


@pytest.mark.parametrize("p", [10, 100])
def test_d1_shares_of_zero(p):
    """himalaya 0.4.11, GroupRidgeCV: a share of zero, as in ``n_iter=np.eye(m)``, divides by zero and raises."""
    X, Y = simulate(p=p)
    half = p // 2
    encoder = BandedRidgeCV([half, half], ALPHAS, n_iter=np.eye(2)).fit(X, Y)
    alone = [RidgeCV(ALPHAS).fit(X[:, :half], Y), RidgeCV(ALPHAS).fit(X[:, half:], Y)]
    winner = np.argmax([one.cv_score_ for one in alone], axis=0)
    np.testing.assert_array_equal(encoder.gamma_, np.eye(2)[winner].T)
    np.testing.assert_allclose(encoder.cv_score_, np.max([one.cv_score_ for one in alone], axis=0), atol=1e-10)
    assert np.isinf(encoder.band_alpha_[encoder.gamma_ == 0]).all()
    assert np.isfinite(encoder.coef_).all()


@pytest.mark.parametrize("p", [10, 100])
def test_d2_one_penalty_for_all_is_one_set_of_shares(p):
    """himalaya 0.4.11, solve_group_ridge_random_search: ``local_alpha=False`` still picks shares per target."""
    X, Y = simulate(p=p, v=20)
    encoder = BandedRidgeCV([p // 2, p - p // 2], ALPHAS, n_iter=12, per_unit=False).fit(X, Y)
    assert len(np.unique(encoder.band_alpha_, axis=1).T) == 1
    each = BandedRidgeCV([p // 2, p - p // 2], ALPHAS, n_iter=12).fit(X, Y)
    assert len(np.unique(each.band_alpha_, axis=1).T) > 1


def test_d3_negative_eigenvalues_do_not_depend_on_blocks_or_penalties():
    """himalaya 0.4.11: negative eigenvalues are zeroed after their weights are made, by batch of alphas."""
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(50) < 8, -0.3, 1.0)  # some directions of negative length
    F = rng.standard_normal((50, 50))
    K = (F * signs) @ F.T
    Y = F @ rng.standard_normal((50, 5)) + rng.standard_normal((50, 5))
    how = {"kernel": "precomputed", "keep_scores": True, "fit_intercept": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are negative eigenvalues
        whole = KernelRidgeCV(ALPHAS, **how).fit(K, Y)
        tiny = KernelRidgeCV(ALPHAS, max_memory=1, **how).fit(K, Y)
        alone = [KernelRidgeCV([alpha], **how).fit(K, Y) for alpha in ALPHAS]
        np.testing.assert_allclose(tiny.cv_scores_, whole.cv_scores_, atol=1e-12)
        np.testing.assert_allclose(np.vstack([one.cv_scores_ for one in alone]), whole.cv_scores_, atol=1e-10)
    # And they count as zero in every fold: a loop that says so.
    expected = np.zeros((len(ALPHAS), 5))
    for train, test in KFold(5).split(K):
        values, vectors = np.linalg.eigh(K[np.ix_(train, train)])
        values, vectors = values[values > 1e-10], vectors[:, values > 1e-10]
        for a, alpha in enumerate(ALPHAS):
            dual = vectors / (values + alpha) @ (vectors.T @ Y[train])
            predicted = K[np.ix_(test, train)] @ dual
            expected[a] += [np.corrcoef(predicted[:, u], Y[test, u])[0, 1] / 5 for u in range(5)]
    np.testing.assert_allclose(whole.cv_scores_, expected, atol=1e-9)


@pytest.mark.parametrize("offset", [10.0, 100.0])
@pytest.mark.parametrize("encoder", ["RidgeCV", "KernelRidgeCV", "BandedRidgeCV"])
def test_d4_offsets_of_features_in_single_precision(encoder, offset):
    """himalaya 0.4.11, KernelRidgeCV: with features 10 sd off zero float32 predictions err by 34 times their sd."""
    X, Y = simulate(n=150, p=400, noise=0.3, dtype=np.float32)
    X = X + np.float32(offset)
    make = {
        "RidgeCV": lambda: RidgeCV(ALPHAS),
        "KernelRidgeCV": lambda: KernelRidgeCV(ALPHAS),
        "BandedRidgeCV": lambda: BandedRidgeCV([200, 200], ALPHAS, n_iter=2),
    }[encoder]
    single = make().fit(X[:100], Y[:100])
    double = make().fit(X[:100].astype(np.float64), Y[:100].astype(np.float64))
    np.testing.assert_array_equal(single.alpha_, double.alpha_)
    expected = double.predict(X[100:].astype(np.float64))
    assert single.predict(X).dtype == np.float32
    assert (np.abs(single.predict(X[100:]) - expected) < 1e-4 * expected.std(0)).all()


@needs_proc
def test_d5_memory_of_a_penalty_for_each_unit():
    """himalaya 0.4.11, Ridge: one alpha per target builds a (target, rank, row) tensor: 2.9 GB for 2.4 MB."""
    setup = DATA.format(n=600, p=300, v=2000) + "Ridge(rng.uniform(1, 100, 50)).fit(X, Y[:, :50])"  # libraries load
    (raised,) = raised_peaks(setup, "Ridge(rng.uniform(1, 100, 2000)).fit(X, Y)")
    assert raised < 100e6
    X, Y = simulate(n=60, p=30, v=20)
    alpha = np.linspace(1, 100, 20)
    fit = Ridge(alpha).fit(X, Y)
    F, y = X - X.mean(0), Y - Y.mean(0)
    for u in range(20):
        b = np.linalg.solve(F.T @ F + alpha[u] * np.eye(30), F.T @ y[:, u])
        np.testing.assert_allclose(fit.coef_[:, u], b, atol=1e-10)


def test_d6_every_public_name_can_be_imported():
    """himalaya 0.4.11: ``import himalaya.kernel_ridge`` needs a package that the installation does not bring."""
    assert "RidgeCV" in encoders.__all__
    for name in encoders.__all__:
        assert getattr(encoders, name) is not None
    for home in set(encoders._HOMES.values()):
        importlib.import_module(home, "neuralign.encoders")


def test_d7_import_of_everything():
    """himalaya 0.4.11: ``__all__`` holds modules in place of names, and ``from himalaya import *`` raises."""
    names: dict = {}
    exec("from neuralign.encoders import *", names)
    assert set(encoders.__all__) <= set(names)
    for package in ("neuralign.encoders", "neuralign.align", "neuralign.datasets"):
        assert all(isinstance(name, str) for name in importlib.import_module(package).__all__)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [10, 100])
def test_d8_alphas_are_those_of_the_grid(p, dtype):
    """himalaya 0.4.11, RidgeCV: ``best_alphas_`` is a logarithm and back, rarely bitwise of the grid."""
    X, Y = simulate(p=p, v=60, dtype=dtype)
    grid = np.logspace(-3, 5, 37)
    for encoder in (
        RidgeCV(grid),
        RidgeCV(grid, per_unit=False),
        KernelRidgeCV(grid),
        BandedRidgeCV([4, p - 4], grid, n_iter=6),
    ):
        assert np.isin(encoder.fit(X, Y).alpha_, grid).all()  # bit for bit


@pytest.mark.parametrize("p", [10, 100])
def test_d9_the_whole_surface_of_scores_and_its_ends(p):
    """himalaya 0.4.11, RidgeCV: scores of other alphas are discarded, and no warning tells of the grid's end."""
    X, Y = simulate(p=p, v=20, noise=0.3)
    wide = RidgeCV(np.logspace(-2, 8, 21), keep_scores=True).fit(X, Y)
    assert wide.cv_scores_.shape == (21, 20)
    np.testing.assert_allclose(wide.cv_scores_.max(0), wide.cv_score_, atol=1e-12)  # ties go to the larger alpha
    np.testing.assert_array_equal(
        wide.cv_score_, wide.cv_scores_[np.searchsorted(wide.alphas_, wide.alpha_), np.arange(20)]
    )
    with pytest.warns(UserWarning, match="where the cross-validated score still climbs; pass wider alphas"):
        narrow = RidgeCV([1e2, 1e3], score="r2").fit(X, Y)
    assert narrow.edge_fraction_ > 0.1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = RidgeCV(ALPHAS, device=device).fit(X, Y)
    np.testing.assert_allclose(here.predict(X), RidgeCV(ALPHAS, device="cpu").fit(X, Y).predict(X), atol=1e-9)


@pytest.mark.parametrize("p", [10, 100])
def test_d10_nothing_undefined_at_rank_zero(p):
    """himalaya 0.4.11, _decompose_ridge: the branch for negative eigenvalues calls what does not exist."""
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((40, 3))
    for X in (np.zeros((40, p)), np.ones((40, p)), np.tile(rng.standard_normal((40, 1)), p)):
        for encoder in (RidgeCV(ALPHAS, score="r2"), BandedRidgeCV([p // 2, p - p // 2], ALPHAS, n_iter=2, score="r2")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = encoder.fit(X, Y)
            assert np.isfinite(fit.coef_).all()
            assert np.isfinite(fit.predict(X)).all()
            assert np.isfinite(fit.cv_score_).all()


def test_d11_folds_of_whole_groups():
    """himalaya 0.4.11: ``cv=GroupKFold()`` raises, as groups are never passed."""
    X, Y = simulate()
    runs = np.repeat([3, 1, 2, 0], [10, 25, 5, 20])
    for encoder in (
        RidgeCV(ALPHAS, cv=GroupKFold(3)),
        KernelRidgeCV(ALPHAS, cv=GroupKFold(3)),
        BandedRidgeCV([4, 6], ALPHAS, n_iter=3, cv=GroupKFold(3)),
        ReducedRankRidge(cv=GroupKFold(3)),
        PLSRegression(n_components=4, cv=GroupKFold(3)),
    ):
        fit = encoder.fit(X, Y, groups=runs)
        assert np.isfinite(fit.predict(X)).all()
    folds = list(GroupKFold(3).split(X, groups=runs))
    by_group = RidgeCV(ALPHAS, cv=GroupKFold(3)).fit(X, Y, groups=runs)
    np.testing.assert_array_equal(by_group.cv_score_, RidgeCV(ALPHAS, cv=folds).fit(X, Y).cv_score_)


@pytest.mark.parametrize("n, groups", [(53, None), (53, np.arange(53) // 7), (47, np.arange(47) % 5)])
def test_d12_groups_reach_the_folds(n, groups):
    """LITcoder 744382b, create_folds: groups land in the argument for trimming, and folds of groups raise."""
    folds = fold_rows(4, np.empty((n, 1)), np.empty((n, 1)), groups)
    if groups is not None:
        for train, test in folds:
            assert not set(groups[train]) & set(groups[test])
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(n))


@pytest.mark.parametrize("p", [10, 100])
def test_d13_correlations_are_those_of_pearson(p):
    """LITcoder 744382b, z_score: the unbiased sd makes correlations too small by (n - 1) / n."""
    X, Y = simulate(n=30, p=p)  # six rows in each fold: a factor of 5 / 6 would show
    encoder = RidgeCV([10.0], keep_scores=True).fit(X, Y)
    expected = np.zeros(6)
    for train, test in KFold(5).split(X):
        predicted = RidgeCV([10.0]).fit(X[train], Y[train]).predict(X[test])
        expected += [pearsonr(predicted[:, u], Y[test, u]).statistic / 5 for u in range(6)]
    np.testing.assert_allclose(encoder.cv_score_, expected, atol=1e-10)
    perfect = RidgeCV([1e-8]).fit(X, X[:, :1] * 2)
    if p < 20:
        assert perfect.cv_score_[0] == pytest.approx(1, abs=1e-10)


def test_d14_folds_lose_no_sample_and_need_no_global_seed():
    """LITcoder 744382b: chunked folds drop the last n mod chunk samples, after a global shuffle without seed."""
    X, Y = simulate(n=53)
    runs = np.arange(53) // 10  # the last run is short
    tested = np.concatenate([test for _, test in fold_rows(3, X, Y, runs)])
    np.testing.assert_array_equal(np.sort(tested), np.arange(53))
    np.random.seed(0)  # noqa: NPY002
    first = RidgeCV(ALPHAS, cv=3).fit(X, Y, groups=runs)
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(RidgeCV(ALPHAS, cv=3).fit(X, Y, groups=runs).coef_, first.coef_)
    # The last samples are there: to move one of them moves the scores.
    moved = Y.copy()
    moved[-1] += 5
    assert (RidgeCV(ALPHAS, cv=3).fit(X, moved, groups=runs).cv_score_ != first.cv_score_).all()


def test_d15_p_values_are_of_permutations_and_never_zero():
    """HuthLab encoding-model-scaling-laws 8dd1126: blocks drawn with replacement, and p of zero is possible."""
    runs = np.repeat([0, 1, 2], [40, 30, 50])
    for orders in (
        shuffles(120, runs, 200, seed=0),
        block_shuffles(120, 10, runs, 200, seed=0),
        circular_shifts(120, runs, n_permutations=200, seed=0),
    ):
        np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(120), (200, 1)))
    observed = np.array([10.0, 0.5, -3.0])
    null = np.random.default_rng(0).uniform(0, 1, (99, 3))
    p = permutation_p(observed, null)
    assert p[0] == 1 / 100
    assert p[2] == 1
    assert 0 < p[1] < 1


@pytest.mark.parametrize("n_features", [3, 40])  # primal, dual
def test_d16_delays_stay_inside_their_run(n_features):
    """HuthLab make_delayed, voxelwise_tutorials 4bf4192 Delayer, LITcoder 744382b FIR: delays leak across runs."""
    rng = np.random.default_rng(0)
    runs = np.repeat([0, 1, 2, 3], [25, 30, 20, 35])
    X = rng.standard_normal((110, n_features)) + 5
    Y = rng.standard_normal((110, 4))
    Y[1:] += X[:-1, :1]
    delays = Delays([1, 2, 3])
    mean = X.mean(0)
    dense = np.zeros((110, 3, n_features))
    for t in range(110):
        for d, delay in enumerate(delays.samples):
            if t - delay >= 0 and runs[t - delay] == runs[t]:
                dense[t, d] = X[t - delay] - mean
    dense = dense.reshape(110, -1)
    ours = RidgeCV(ALPHAS, cv=4, keep_scores=True).fit(delays.apply(X, runs), Y, groups=runs)
    copied = RidgeCV(ALPHAS, cv=4, keep_scores=True).fit(dense, Y, groups=runs)
    np.testing.assert_allclose(ours.cv_scores_, copied.cv_scores_, atol=1e-9)
    np.testing.assert_allclose(ours.coef_, copied.coef_, atol=1e-9)
    np.testing.assert_allclose(ours.predict(delays.apply(X, runs)), copied.predict(dense), atol=1e-9)
    # The same data with delays across runs give other scores.
    leaky = RidgeCV(ALPHAS, cv=4, keep_scores=True).fit(delays.apply(X), Y, groups=runs)
    assert np.abs(leaky.cv_scores_ - ours.cv_scores_).max() > 1e-3
    # Whatever the first run holds, it cannot reach the rows of the others.
    other = X.copy()
    other[runs == 0] += 100
    rows = runs > 0
    same = [delays.apply(x, runs, offset=mean).dense()[rows] for x in (X, other)]
    np.testing.assert_array_equal(*same)


def test_d17_the_callers_data_stay_as_they_are():
    """mTRFpy 2.1.2, _check_data: writes into the list that it is given."""
    X, Y = simulate()
    runs, K = np.arange(60) // 6, X @ X.T
    folds = [(train.tolist(), test.tolist()) for train, test in KFold(4).split(X)]
    grid, gammas = ALPHAS[::-1].copy(), np.array([[2.0, 6.0]])
    given = (X, Y, runs, K, grid, gammas)
    before, folds_before = [array.copy() for array in given], [(list(train), list(test)) for train, test in folds]
    for array in given:
        array.setflags(write=False)
    RidgeCV(grid, cv=folds, standardise=True, nested=True).fit(X, Y).predict(X)
    RidgeCV(grid, cv=4).fit(X, Y, groups=runs)
    Ridge(2.0).fit(X, Y).predict(X)
    KernelRidgeCV(grid, kernel="precomputed").fit(K, Y).predict(K)
    KernelRidgeCV(grid, kernel="rbf").fit(X, Y).predict(X)
    BandedRidgeCV([4, 6], grid, n_iter=gammas, cv=folds).fit(X, Y).predict_by_band(X)
    PLSRegression(n_components=4).fit(X, Y).predict(X)
    ReducedRankRidge().fit(X, Y).predict(X)
    for array, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert folds == folds_before


@pytest.mark.parametrize("p", [10, 100])
@pytest.mark.parametrize(
    "cv",
    [KFold(3), ShuffleSplit(4, test_size=0.3, random_state=0), PredefinedSplit(np.arange(60) % 4 - 1), GroupKFold(4)],
    ids=["KFold", "ShuffleSplit", "PredefinedSplit", "GroupKFold"],
)
def test_d18_a_penalty_for_each_unit_with_any_folds_in_single_precision(cv, p):
    """scikit-learn 1.9.1, RidgeCV: alphas per target with leave-one-out only, and float32 becomes float64."""
    X, Y = simulate(p=p, v=30, noise=2.0, dtype=np.float32)
    runs = np.arange(60) // 7 if isinstance(cv, GroupKFold) else None
    encoder = RidgeCV(np.logspace(-2, 6, 17), cv=cv, score="r2").fit(X, Y, groups=runs)
    assert len(np.unique(encoder.alpha_)) > 2
    for array in (encoder.coef_, encoder.intercept_, encoder.weights_, encoder.predict(X)):
        assert array.dtype == np.float32


@needs_proc
@pytest.mark.parametrize("shape", [(2000, 50), (300, 400)])
def test_d19_memory_hardly_grows_with_the_number_of_alphas(shape):
    """Brain-Score vision 0197a60, ridge_cv_regression: 99 alphas store (row, unit, alpha) doubles."""
    n, p, v = *shape, 4000
    fit = "RidgeCV(np.logspace(-2, 6, {}), keep_scores=True, max_memory=2**26).fit(X, Y{})"
    setup = DATA.format(n=n, p=p, v=v) + fit.format(5, "[:, :50]")
    few, more = raised_peaks(setup, fit.format(5, ""), fit.format(99, ""))
    table = 8 * 99 * v  # the surface of scores, which was asked for
    assert few < 2**26 + 60e6
    assert more < 2 * table + 30e6  # beyond what five took; the peer's array holds n times as much as the table


@needs_proc
def test_the_peak_of_memory_is_seen():
    small, large = raised_peaks("", "np.ones(1000)", "np.ones(25_000_000)")
    assert small < 5e6
    assert 180e6 < large < 260e6
