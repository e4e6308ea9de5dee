"""Delays against a double loop over samples and delays."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone

from neuralign.encoders import RidgeCV
from neuralign.encoders.linear import delays as module
from neuralign.encoders.linear.delays import Delays

# Delays, and the lengths of runs: contiguous, alone, spaced, ahead and back, uneven, out of order, beyond every run.
CASES = {
    "one run": ([0, 1, 2, 3], [40]),
    "runs": ([1, 2, 3, 4], [15, 11, 14]),
    "single": ([3], [20, 10]),
    "zero": ([0], [20, 10]),
    "spaced": ([2, 4, 6], [30, 25]),
    "ahead": ([-3, -2, -1], [20, 16]),
    "both ways": ([-2, -1, 0, 1, 2], [17, 1, 2, 30]),
    "uneven": ([0, 1, 5, 12], [20, 9, 13]),
    "unsorted": ([3, -1, 0], [20, 9, 13]),
    "short runs": ([2, 3, 4, 5], [3, 50, 1, 2, 4, 45]),
    "beyond": ([30, 31], [20, 25]),
    "many": (list(range(-8, 24)), [70, 90]),
}


def delayed_by_loop(X, runs, delays, fill=None):
    """Delayed copies, one sample, delay and feature at a time; outside a run stands `fill`, then columns lose it."""
    n, p = X.shape
    fill = np.zeros(p) if fill is None else fill
    result = np.zeros((n, len(delays) * p))
    for t in range(n):
        for d, delay in enumerate(delays):
            for f in range(p):
                inside = 0 <= t - delay < n and runs[t - delay] == runs[t]
                result[t, d * p + f] = (X[t - delay, f] if inside else fill[f]) - fill[f]
    return result


def simulate(lengths, p=3, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    runs = np.repeat([f"run-{9 - q}" for q in range(len(lengths))], lengths)
    return (rng.standard_normal((len(runs), p)) + rng.standard_normal(p) * 5).astype(dtype), runs


def row_sets(runs, seed=1):
    """All rows, a slice, whole runs, stretches of runs, scattered, repeated and unsorted rows."""
    rng = np.random.default_rng(seed)
    n = len(runs)
    names = np.unique(runs)
    return {
        "all": slice(None),
        "slice": slice(3, n - 4),
        "whole runs": np.flatnonzero(np.isin(runs, names[: max(1, len(names) - 1)])),
        "with a gap": np.flatnonzero((np.arange(n) < n // 3) | (np.arange(n) > n // 2)),
        "scattered": np.sort(rng.choice(n, n // 2, replace=False)),
        "unsorted": rng.permutation(n)[: n - 3],
        "repeated": rng.integers(0, n, n),
        "one": np.array([n // 2]),
    }


def check_operator(features, dense, runs, tolerance=1e-11):
    """Every product of `features` against those of the array `dense`."""
    rng = np.random.default_rng(2)
    n, C = dense.shape
    dtype = dense.dtype if dense.dtype == np.float32 else np.float64
    assert features.shape == (n, C)
    np.testing.assert_allclose(features.dense(), dense, atol=tolerance)
    scale = np.exp(rng.standard_normal(C))
    V, W = rng.standard_normal((C, 4)), rng.standard_normal((n, 5))
    exact = {"atol": tolerance * n, "rtol": 1e-9}
    np.testing.assert_allclose(features.kernel(), dense @ dense.T, **exact)
    scaled = dense / scale
    np.testing.assert_allclose(features.kernel(torch.from_numpy(scale)), scaled @ scaled.T, **exact)
    np.testing.assert_allclose(features.combine(torch.from_numpy(W)), dense.T @ W, **exact)
    for rows in row_sets(runs).values():
        chosen = rows if isinstance(rows, slice) else torch.from_numpy(rows)
        part = dense[rows].astype(np.float64)
        gram = features.gram(chosen)
        assert gram.dtype == features.sums(chosen).dtype == torch.float64
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_allclose(gram, part.T @ part, **exact)
        np.testing.assert_allclose(features.sums(chosen), part.sum(0), **exact)
        for mean in (np.zeros(part.shape[1]), part.mean(0), np.arange(part.shape[1]) / 3):
            about = torch.from_numpy(mean)
            np.testing.assert_allclose(features.squares(chosen, about), ((part - mean) ** 2).sum(0), **exact)
            np.testing.assert_allclose(features.gram(chosen, about), (part - mean).T @ (part - mean), **exact)
        np.testing.assert_array_equal(features.varying(chosen), np.ptp(part, axis=0) > 0)
        np.testing.assert_allclose(features.project(chosen, torch.from_numpy(V)), part @ V, **exact)
        Y = rng.standard_normal((len(part), 6)).astype(dtype)
        cross = features.cross(chosen, torch.from_numpy(Y))
        assert cross.dtype == features.dtype
        loose = {"atol": 1e-5 * n, "rtol": 1e-5} if dtype == np.float32 else exact
        np.testing.assert_allclose(cross, part.T @ Y, **loose)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_product_equals_the_loop(case, centre):
    delays, lengths = CASES[case]
    X, runs = simulate(lengths)
    features = Delays(delays).apply(X, runs, centre=centre, device="cpu")
    check_operator(features, delayed_by_loop(X, runs, delays, X.mean(0) if centre else None), runs)
    offset = np.tile(X.mean(0), len(delays)) if centre else np.zeros(len(delays) * 3)
    np.testing.assert_allclose(features.offset, offset, rtol=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_any_delays_runs_and_blocks(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, rng.integers(1, 6))
    if rng.random() < 0.5:
        step = rng.integers(1, 4)
        delays = (rng.integers(-6, 6) + step * np.arange(rng.integers(1, 8))).tolist()
    else:
        delays = rng.choice(np.arange(-15, 15), rng.integers(1, 7), replace=False).tolist()
    X, runs = simulate([*lengths, 12], p=int(rng.integers(1, 6)), seed=seed)
    monkeypatch.setattr(module, "_CELLS", int(rng.integers(1, 200)))
    monkeypatch.setattr(module, "_ROWS", int(rng.integers(1, 9)))
    features = Delays(delays).apply(X, runs, device="cpu")
    check_operator(features, delayed_by_loop(X, runs, delays, X.mean(0)), runs)


@pytest.mark.parametrize("case", ["runs", "uneven"])
def test_float32_is_kept_and_its_products_are_float64(case):
    delays, lengths = CASES[case]
    X, runs = simulate(lengths, dtype=np.float32)
    features = Delays(delays).apply(X, runs, device="cpu")
    assert features.dtype == torch.float32
    assert features.dense().dtype == np.float32
    dense = delayed_by_loop((X - X.mean(0, dtype=np.float64)).astype(np.float32), runs, delays)
    np.testing.assert_array_equal(features.dense(), dense)
    exact = dense.astype(np.float64)
    np.testing.assert_allclose(features.gram(slice(None)), exact.T @ exact, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(features.kernel(), exact @ exact.T, rtol=1e-12, atol=1e-11)
    check_operator(features, dense.astype(np.float32), runs, tolerance=1e-6)


def test_rows_in_another_order():
    delays, lengths = CASES["both ways"]
    X, runs = simulate(lengths)
    order = np.random.default_rng(3).permutation(len(X))
    features = Delays(delays).apply(X, runs, order=order, device="cpu")
    check_operator(features, delayed_by_loop(X, runs, delays, X.mean(0))[order], runs[order])


def test_blocks_of_the_gram_are_shared_along_the_diagonals(monkeypatch):
    """One product for each delay, not one for each pair, where there are long runs."""
    X, runs = simulate([300, 400])
    products = []
    monkeypatch.setattr(module, "add_outer", lambda A, total: products.append(A.shape))
    features = Delays(range(10)).apply(X, runs, device="cpu")
    dense = features.dense()
    np.testing.assert_allclose(features.gram(slice(None)), dense.T @ dense, atol=1e-9)
    assert products == []
    features.gram(torch.arange(0, 700, 2))  # nothing to share here
    assert products == [(350, 30)]


def test_few_rows_are_delayed_at_once(monkeypatch):
    monkeypatch.setattr(module, "_CELLS", 2000)
    monkeypatch.setattr(module, "_ROWS", 10)
    X, runs = simulate([200, 250])
    features = Delays(range(20)).apply(X, runs, device="cpu")
    sizes = []
    block = module.DelayedFeatures._block

    def watched(self, source, dtype):
        sizes.append(source.numel() * 3)
        return block(self, source, dtype)

    monkeypatch.setattr(module.DelayedFeatures, "_block", watched)
    every = slice(None)
    for product in (
        lambda: features.gram(every),
        lambda: features.gram(torch.arange(0, 450, 2)),
        lambda: features.cross(every, torch.zeros(450, 2, dtype=torch.float64)),
        lambda: features.project(every, torch.zeros(60, 2, dtype=torch.float64)),
        lambda: features.combine(torch.zeros(450, 2, dtype=torch.float64)),
    ):
        product()
        assert 1000 < max(sizes) <= 2000
        sizes.clear()
    for product in (
        features.kernel,
        lambda: features.sums(every),
        lambda: features.squares(every, torch.zeros(features.shape[1], dtype=torch.float64)),
    ):
        product()
        assert sizes == []  # not delayed at all


def test_large_offsets_lose_no_digits_in_float32():
    X, runs = simulate([60, 60], dtype=np.float64)
    features = Delays([0, 1, 2]).apply((1e4 + X).astype(np.float32), runs, device="cpu")
    dense = delayed_by_loop(X, runs, [0, 1, 2], X.mean(0))
    np.testing.assert_allclose(features.gram(slice(None)), dense.T @ dense, rtol=2e-3, atol=0.2)
    assert abs(features.sums(slice(None))[0]) < 1e-2


# Runs


@pytest.mark.parametrize("delays", [[1, 2, 3], [-2, 4], [-3, -2]])
def test_delays_never_leak_across_runs(delays):
    """Peers delay concatenated runs as if they were one: the end of a run then predicts the start of the next."""
    X, runs = simulate([12, 8, 15])
    whole = Delays(delays).apply(X, runs, centre=False, device="cpu")
    apart = [
        Delays(delays).apply(X[runs == q], centre=False, device="cpu").dense() for q in ("run-9", "run-8", "run-7")
    ]
    np.testing.assert_array_equal(whole.dense(), np.concatenate(apart))
    assert np.abs(whole.dense() - Delays(delays).apply(X, centre=False, device="cpu").dense()).max() > 1
    # Whatever another run holds leaves a run's rows, and every product over them, as they are.
    changed = X.copy()
    changed[runs != "run-8"] = 1e6
    other = Delays(delays).apply(changed, runs, centre=False, device="cpu")
    rows = torch.from_numpy(np.flatnonzero(runs == "run-8"))
    np.testing.assert_array_equal(other.dense()[rows], whole.dense()[rows])
    np.testing.assert_allclose(other.gram(rows), whole.gram(rows), rtol=1e-12)
    np.testing.assert_allclose(other.kernel()[rows][:, rows], whole.kernel()[rows][:, rows], rtol=1e-12)
    np.testing.assert_array_equal(other.sums(rows), whole.sums(rows))


def test_a_run_shorter_than_a_delay_is_all_fill():
    X, runs = simulate([3, 20])
    features = Delays([3, 5]).apply(X, runs, device="cpu")
    assert (features.dense()[:3] == 0).all()
    assert not features.varying(slice(0, 3)).any()
    assert (features.gram(slice(0, 3)) == 0).all()


def test_samples_outside_a_run_count_as_the_mean():
    X, runs = simulate([10, 12])
    features = Delays([1]).apply(X, runs, device="cpu")
    values = features.dense() + features.offset.numpy()
    np.testing.assert_allclose(values[[0, 10]], np.tile(X.mean(0), (2, 1)))
    np.testing.assert_allclose(values[1:10], X[:9])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_features_stay_constant(dtype):
    X, runs = simulate([9, 14], dtype=dtype)
    X[:, 1] = 0.1  # its mean in floating point is not 0.1
    features = Delays([0, 1, 2]).apply(X, runs, device="cpu")
    assert features.varying(slice(None)).tolist() == [True, False, True] * 3
    assert (features.dense()[:, 1::3] == 0).all()


def test_new_data_with_the_offset_of_the_training_data():
    delays = Delays([1, 2])
    X, runs = simulate([20, 20])
    new, new_runs = simulate([7, 9], seed=5)
    training = delays.apply(X, runs, device="cpu")
    expected = delayed_by_loop(new, new_runs, delays.samples, X.mean(0))
    for offset in (training.offset, training.offset.numpy(), X.mean(0)):
        np.testing.assert_allclose(
            delays.apply(new, new_runs, offset=offset, device="cpu").dense(), expected, atol=1e-12
        )


def test_recovers_an_impulse_response():
    """Least squares by Gram and cross-products finds the response that made the data, over runs."""
    rng = np.random.default_rng(0)
    X, runs = simulate([150, 90, 120], p=2)
    delays = Delays.from_seconds(-2, 8, tr=2)
    truth = rng.standard_normal((6, 2, 4))
    Y = delayed_by_loop(X, runs, delays.samples, X.mean(0)) @ truth.reshape(12, 4)
    features = delays.apply(X, runs, device="cpu")
    coef = torch.linalg.solve(features.gram(slice(None)), features.cross(slice(None), torch.from_numpy(Y)))
    np.testing.assert_allclose(delays.by_delay(coef), truth, atol=1e-9)
    np.testing.assert_allclose(features.project(slice(None), coef), Y, atol=1e-9)


# Around it


def test_columns_come_delay_by_delay():
    columns = Delays([0, 2]).apply(np.arange(8.0).reshape(4, 2), centre=False, device="cpu").dense()
    np.testing.assert_array_equal(columns[2], [4, 5, 0, 1])
    coef = np.arange(12).reshape(4, 3)
    split = Delays([0, 2]).by_delay(coef)
    assert split.shape == (2, 2, 3)
    np.testing.assert_array_equal(split[1, 0], coef[2])
    assert Delays([0, 2]).by_delay(torch.zeros(4)).shape == (2, 2)


def test_inputs_of_every_kind():
    X, runs = simulate([8, 9])
    expected = Delays([0, 1]).apply(X, runs, device="cpu").dense()
    X.setflags(write=False)
    before = X.copy()
    for given in (X, np.asfortranarray(X), X[::-1][::-1], torch.from_numpy(before)):
        np.testing.assert_allclose(Delays([0, 1]).apply(given, runs, device="cpu").dense(), expected, atol=1e-14)
    np.testing.assert_array_equal(X, before)
    whole = Delays([0, 1]).apply((10 * X).astype(int), runs, device="cpu")
    assert whole.dtype == torch.float64
    assert repr(whole) == "DelayedFeatures(17 samples in 2 runs, 2 delays x 3 features, torch.float64)"
    assert pickle.loads(pickle.dumps(whole)).dense().shape == (17, 6)


def test_delays_are_values():
    assert Delays(np.array([1, 2])) == Delays([1, 2]) == Delays(range(1, 3)) != Delays([2, 1])
    assert len({Delays([1, 2]), Delays((1, 2))}) == 1
    assert len(Delays([1, 5])) == 2
    assert repr(Delays([1, 2])) == "Delays(samples=(1, 2))"


@pytest.mark.parametrize(
    ("first", "last", "tr", "samples"),
    [
        (2, 8, 2, (1, 2, 3, 4)),
        (0.1, 0.3, 0.1, (1, 2, 3)),
        (-0.1, 0.1, 1 / 64, tuple(range(-6, 7))),
        (3, 7, 2, (2, 3)),
        (0, 0, 1.5, (0,)),
    ],
)
def test_delays_from_seconds(first, last, tr, samples):
    assert Delays.from_seconds(first, last, tr).samples == samples


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Delays([]), "delays=\\[\\]: expected a sequence of at least one delay"),
        (lambda: Delays(3), "delays=3: expected a sequence"),
        (lambda: Delays([1.5, 2.0]), "whole numbers of samples; Delays.from_seconds"),
        (lambda: Delays([True]), "whole numbers"),
        (lambda: Delays([1, 2, 1]), "delays hold 1 more than once"),
        (lambda: Delays.from_seconds(2, 8, tr=0), "tr=0: expected seconds"),
        (lambda: Delays.from_seconds(8, 2, tr=1), "the first not after the last"),
        (lambda: Delays.from_seconds(0.1, 0.2, tr=1), "no whole sample of 1 s"),
        (lambda: Delays([1, 2]).by_delay(np.zeros((5, 2))), "coef has shape \\(5, 2\\)"),
    ],
)
def test_delays_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": np.zeros(5)}, "X has shape \\(5,\\); expected \\(sample, feature\\)"),
        ({"X": np.zeros((5, 0))}, "X has shape \\(5, 0\\)"),
        ({"X": np.array([[1.0, np.nan], [2.0, 3.0]])}, "1 of 2 features of X hold NaN"),
        ({"X": np.array([[1.0, np.inf], [np.nan, 3.0]])}, "2 of 2 features of X hold NaN"),
        ({"runs": [1, 1, 2]}, "runs has shape \\(3,\\); expected \\(4,\\)"),
        ({"runs": [1, 2, 1, 1]}, "run 1 comes in several pieces"),
        ({"offset": [1.0, 2.0, 3.0]}, "offset has shape \\(3,\\); expected \\(2,\\)"),
        ({"offset": [1.0, 2.0, 1.0, 3.0]}, "offset differs between the delays"),
        ({"offset": [1.0, np.nan]}, "offset holds NaN"),
        ({"offset": [1.0, 2.0], "centre": False}, "leave out one of the two"),
        ({"order": [0, 1, 2, 2]}, "each of the 4 samples of X once"),
        ({"device": "abacus"}, "device='abacus' is unknown"),
    ],
)
def test_data_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Delays([0, 1]).apply(**({"X": np.arange(8.0).reshape(4, 2)} | arguments))


def test_ridge_from_one_decomposition_keeps_the_order_of_the_rows():
    """Runs that folds take in another order, few units and many folds: residuals of all rows give the weights."""
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(20), 6)
    features = Delays([0, 1, 2]).apply(rng.standard_normal((120, 80)), runs=runs)
    y = rng.standard_normal((120, 1))
    dense = np.asarray(features.dense())
    encoder = RidgeCV([1.0, 10.0, 100.0], cv=10, keep_scores=True)
    delayed, plain = (clone(encoder).fit(X, y, groups=runs) for X in (features, dense))
    np.testing.assert_allclose(delayed.cv_scores_, plain.cv_scores_, atol=1e-9)
    np.testing.assert_allclose(delayed.predict(features), plain.predict(dense), atol=1e-9)
