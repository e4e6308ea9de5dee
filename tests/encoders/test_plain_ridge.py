import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear.delays import Delays
from neuralign.encoders.linear.ridge import Ridge, RidgeCV
from neuralign.encoders.linear.stream import BlockFitter


@parametrize_with_checks([Ridge(), Ridge(standardise=True), Ridge(fit_intercept=False)])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n=60, p=8, v=5, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * np.exp(rng.standard_normal(p)) + 2.0
    Y = X @ rng.standard_normal((p, v)) + rng.standard_normal((n, v)) + 3.0
    return X.astype(dtype), Y.astype(dtype)


def reference(X, Y, alpha, intercept, standardise):
    """Weights and intercepts from the normal equations, one unit at a time."""
    X, Y = X.astype(np.float64), Y.astype(np.float64)
    mean, y_mean = (X.mean(0), Y.mean(0)) if intercept else (np.zeros(X.shape[1]), np.zeros(Y.shape[1]))
    scale = X.std(0) if standardise else np.ones(X.shape[1])
    F = (X - mean) / scale
    each = zip(np.broadcast_to(alpha, Y.shape[1]), (Y - y_mean).T, strict=True)
    b = np.stack([np.linalg.solve(F.T @ F + a * np.eye(F.shape[1]), F.T @ y) / scale for a, y in each], 1)
    return b, y_mean - mean @ b


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("per_unit", [True, False])
@pytest.mark.parametrize("shape", [(60, 10, 7), (60, 10, 90), (40, 100, 7), (40, 100, 90), (50, 1, 6), (50, 12, 1)])
def test_slow_reference(shape, per_unit, intercept, standardise, dtype):
    X, Y = simulate(*shape, dtype=dtype)
    alpha = np.random.default_rng(1).permutation(np.logspace(-2, 3, shape[2])) if per_unit else 3.0
    encoder = Ridge(alpha, fit_intercept=intercept, standardise=standardise).fit(X, Y)
    b, b0 = reference(X, Y, alpha, intercept, standardise)
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    assert encoder.coef_.dtype == encoder.predict(X).dtype == encoder.intercept_.dtype == dtype
    assert (np.abs(encoder.coef_ - b) <= 20 * tolerance * np.abs(b).max(0)).all()
    np.testing.assert_allclose(encoder.intercept_, b0, atol=50 * tolerance * np.abs(Y).max())
    np.testing.assert_allclose(encoder.predict(X), X @ b + b0, atol=10 * tolerance * Y.std())
    np.testing.assert_allclose(encoder.axes_ @ encoder.weights_, encoder.coef_, rtol=1e-4)
    assert encoder.feature_mean_.shape == (shape[1],) and encoder.response_mean_.shape == (shape[2],)
    assert encoder.n_features_in_ == shape[1]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(120, 20, 15), (60, 100, 15)])
def test_scikit_learn(shape, intercept):
    X, Y = simulate(*shape)
    alpha = np.logspace(-1, 4, 15)
    ours, theirs = (E(alpha, fit_intercept=intercept).fit(X, Y) for E in (Ridge, SklearnRidge))
    np.testing.assert_allclose(ours.coef_, theirs.coef_.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-8)


@pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")
@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("shape", [(60, 8), (30, 80), (40, 36)])
def test_refit_at_the_alphas_of_cross_validation(shape, standardise):
    """From features, and from the design of the cross-validation: the same weights."""
    X, Y = simulate(*shape)
    searched = RidgeCV(standardise=standardise)
    design = searched.design(X)
    searched.fit(design, Y)
    for given in (X, design):
        encoder = Ridge(searched.alpha_, standardise=standardise).fit(given, Y)
        np.testing.assert_allclose(encoder.coef_, searched.coef_, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(encoder.predict(X), searched.predict(X), rtol=1e-9)
        assert encoder.n_features_in_ == shape[1]
    with pytest.raises(ValueError, match="fit_intercept=False, and the design was made with fit_intercept=True"):
        Ridge(fit_intercept=False, standardise=standardise).fit(design, Y)


@pytest.mark.parametrize("p", [8, 40])
def test_delayed_features(p):
    X, Y = simulate(p=p)
    delayed = Delays([0, 1, 2]).apply(X, np.arange(60) // 20, device="cpu")
    lazy, dense = Ridge([1.0, 2.0, 3.0, 4.0, 5.0]), Ridge([1.0, 2.0, 3.0, 4.0, 5.0])
    lazy.fit(delayed, Y)
    dense.fit(delayed.dense(), Y)
    np.testing.assert_allclose(lazy.coef_, dense.coef_, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(lazy.predict(delayed), dense.predict(delayed.dense()), rtol=1e-9)


@pytest.mark.parametrize("shape", [(60, 8), (30, 80)])
def test_result_does_not_depend_on_blocks(shape, monkeypatch):
    X, Y = simulate(*shape, v=23)
    alpha = np.logspace(-2, 3, 23)
    whole = Ridge(alpha).fit(X, Y)
    widths = []
    fit = BlockFitter.fit

    def watched(self, values, part, index=None):
        widths.append(part.stop - part.start)
        return fit(self, values, part, index)

    monkeypatch.setattr(BlockFitter, "fit", watched)
    tiny = Ridge(alpha, max_memory=1).fit(X, Y)
    assert set(widths) == {1}
    np.testing.assert_allclose(tiny.coef_, whole.coef_, rtol=1e-9, atol=1e-12)


MEASURE = """
import resource
import numpy as np
from neuralign.encoders.linear.delays import Delays
from neuralign.encoders.linear.ridge import Ridge

rng = np.random.default_rng(0)
Ridge().fit(rng.standard_normal((20, 5), np.float32), rng.standard_normal((20, 3), np.float32))  # first calls
X, Y = rng.standard_normal((600, 300), np.float32), rng.standard_normal((600, 2000), np.float32)
alpha = np.logspace(0, 4, 2000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoder = Ridge(alpha).fit(X, Y)
assert encoder.coef_.shape == (300, 2000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_an_alpha_for_each_unit_takes_no_large_tensor():
    """600 x 300 x 2000: a tensor (unit, axis, row) would take 1.4 GB."""
    printed = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout
    assert float(printed) < 100


@pytest.mark.parametrize("offset", [10.0, 1e4])
@pytest.mark.parametrize("shape", [(300, 40), (100, 400)])
def test_large_offsets_cost_no_accuracy(shape, offset):
    X, _ = simulate(*shape)
    X = ((X - X.mean(0)) / X.std(0)).astype(np.float32) + np.float32(offset)
    Y = ((X - offset) @ np.random.default_rng(1).standard_normal((shape[1], 4))).astype(np.float32)
    single, double = Ridge(10.0).fit(X, Y), Ridge(10.0).fit(X.astype(np.float64), Y.astype(np.float64))
    expected = double.predict(X.astype(np.float64))
    assert (np.abs(single.predict(X) - expected) < 1e-5 * expected.std(0)).all()


def test_vector_clone_pickle_pipeline_and_weights_on_disk(tmp_path):
    X, Y = simulate()
    encoder = Ridge(2.0).fit(X, Y)
    single = Ridge([2.0]).fit(X, Y[:, 0])
    assert single.coef_.shape == (8,) and single.predict(X).shape == (60,) and np.ndim(single.intercept_) == 0
    np.testing.assert_allclose(single.coef_, encoder.coef_[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(clone(encoder).fit(X, Y).coef_, encoder.coef_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).predict(X), encoder.predict(X))
    stored = Ridge(2.0, weights=tmp_path / "weights.npy").fit(X, Y)
    np.testing.assert_array_equal(np.load(tmp_path / "weights.npy"), encoder.weights_)
    np.testing.assert_array_equal(stored.predict(X), encoder.predict(X))
    assert make_pipeline(StandardScaler(), Ridge()).fit(X, Y).predict(X).shape == Y.shape


def test_units_with_nan_are_left_out_and_constant_ones_predicted():
    X, Y = simulate()
    holed = Y.copy()
    holed[3, 1] = holed[:, 4] = np.nan
    holed[:, 2] = 0.1
    with pytest.warns(UserWarning, match="2 of 5 units hold NaN") as caught:
        encoder = Ridge([1.0, np.nan, 2.0, 3.0, np.nan]).fit(X, holed)  # as RidgeCV leaves alpha_
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = Ridge([1.0, 1.0, 2.0, 3.0, 1.0]).fit(X, Y)
    for name in ("coef_", "intercept_", "response_mean_"):
        assert np.isnan(getattr(encoder, name)[..., [1, 4]]).all()
        np.testing.assert_allclose(getattr(encoder, name)[..., [0, 3]], getattr(whole, name)[..., [0, 3]], rtol=1e-9)
    assert np.isnan(encoder.predict(X)[:, [1, 4]]).all()
    np.testing.assert_array_equal(encoder.predict(X)[:, 2], np.full(60, 0.1))


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"alpha": 0.0}, "alpha holds 0"),
        ({"alpha": -1.0}, "alpha holds -1"),
        ({"alpha": np.nan}, "alpha holds nan"),
        ({"alpha": [1.0, 2.0, np.inf, 1.0, 1.0]}, "alpha holds inf"),
        ({"alpha": [1.0, 2.0]}, r"alpha has shape \(2,\); expected one number, or shape \(5,\)"),
        ({"alpha": "much"}, "alpha='much'"),
        ({"max_memory": 0}, "max_memory=0"),
        ({"weights": "none"}, "weights='none': nothing would be left"),
        ({"weights": "disk"}, "weights='disk'"),
        ({"device": "gpu"}, "device='gpu'"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = simulate()
    with pytest.raises(ValueError, match=message):
        Ridge(**parameters).fit(X, Y)


def test_data_out_of_range(tmp_path):
    X, Y = simulate()
    path = tmp_path / "weights.npy"
    with pytest.raises(ValueError, match="alpha is NaN for 2 units that hold no NaN, unit 1 first"):
        Ridge([1.0, np.nan, 1.0, np.nan, 1.0], weights=path).fit(X, Y)
    assert not path.exists()
    with pytest.raises(ValueError, match="X has 60 rows and Y has 59"):
        Ridge().fit(X, Y[:-1])
    with pytest.raises(ValueError, match="every unit of Y"):
        Ridge().fit(X, np.full_like(Y, np.nan))
    with pytest.raises(ValueError, match="target y is None"):
        Ridge().fit(X, None)


def test_a_fit_that_fails_leaves_weights_on_disk_alone(tmp_path):
    X, Y = simulate()
    path = tmp_path / "weights.npy"
    Ridge(weights=path).fit(X, Y)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="every unit of Y"):
        Ridge(weights=path).fit(X, np.full_like(Y, np.nan))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
