import pickle
import warnings

import h5py
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as PlainRidge
from sklearn.model_selection import GroupKFold, KFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.spatial.ridge import RidgeReadout
from neuralign.encoders.spatial.store import TokenStore

ALPHAS = np.logspace(-1, 5, 7)

# Grids are kept short here; the engine has tests of this warning.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the chosen alphas lie at an end of the grid")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:.* folds have fewer than 3 test rows", "ignore:.*test folds of two rows at most")
@parametrize_with_checks([RidgeReadout(), RidgeReadout("pooled", criterion="r2"), RidgeReadout("pca")])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(n=90, grid=(3, 4), d=5, v=6, noise=1.0, seed=0, dtype=np.float64):
    """Tokens with an offset, of which features of one place and the mean over places drive the units."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((n, grid[0] * grid[1], d)) * rng.uniform(0.5, 3, d) + 4
    Y = tokens[:, -1] @ rng.standard_normal((d, v)) + 3 * tokens.mean(1) @ rng.standard_normal((d, v))
    return tokens.astype(dtype), (Y + noise * Y.std() * rng.standard_normal((n, v)) + 7).astype(dtype)


# One equation


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_one_token_is_the_linear_model(reduce, standardise):
    tokens, Y = simulate(grid=(1, 1), d=8)
    expected = RidgeCV(ALPHAS, standardise=standardise).fit(tokens[:, 0], Y)
    for X in (tokens, tokens[:, 0]):
        found = RidgeReadout(reduce, components=8, alphas=ALPHAS, standardise=standardise).fit(X, Y)
        np.testing.assert_array_equal(found.alpha_, expected.alpha_)
        np.testing.assert_allclose(found.cv_score_, expected.cv_score_, atol=1e-12)
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
        np.testing.assert_allclose(found.predict(X), expected.predict(tokens[:, 0]), rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flat_and_pooled_are_the_engine_on_their_features(dtype):
    tokens, Y = simulate(dtype=dtype)
    for reduce, features in (("flat", tokens.reshape(len(tokens), -1)), ("pooled", tokens.mean(1))):
        found = RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y)
        expected = RidgeCV(ALPHAS, standardise=True).fit(features, Y)
        tolerance = 2e-4 if dtype == np.float32 else 1e-10
        np.testing.assert_array_equal(found.alpha_, expected.alpha_)
        np.testing.assert_allclose(found.validation_r_, expected.cv_score_, atol=tolerance)
        np.testing.assert_allclose(found.predict(tokens), expected.predict(features), atol=tolerance)
        assert found.predict(tokens).dtype == found.coef_.dtype == dtype
        assert found.coef_.shape == (features.shape[1], 6)


@pytest.mark.parametrize("n", [40, 150])
@pytest.mark.parametrize("standardise", [False, True])
def test_all_components_are_the_flat_readout(n, standardise):
    tokens, Y = simulate(n=n)
    flat = RidgeReadout(alphas=ALPHAS, standardise=standardise).fit(tokens, Y)
    pca = RidgeReadout("pca", components=10**6, alphas=ALPHAS, standardise=standardise).fit(tokens, Y)
    assert set(pca.components_) == {min(n - 1, 60)}
    np.testing.assert_array_equal(pca.alpha_, flat.alpha_)
    np.testing.assert_allclose(pca.cv_score_, flat.cv_score_, atol=1e-9)
    np.testing.assert_allclose(pca.predict(tokens), flat.predict(tokens), rtol=1e-8)
    np.testing.assert_allclose(pca.coef_, flat.coef_, atol=1e-8)


def plain_principal(X, Y, folds, counts, alphas, standardise):
    """Mean r of every number of components and penalty, one scikit-learn estimator at a time."""
    table = np.zeros((len(counts), len(alphas), Y.shape[1]))
    for train, test in folds:
        scaler = StandardScaler(with_std=standardise).fit(X[train])
        for c, count in enumerate(counts):
            pca = PCA(count, svd_solver="full").fit(scaler.transform(X[train]))
            a, b = (pca.transform(scaler.transform(X[rows])) for rows in (train, test))
            for k, alpha in enumerate(alphas):
                predicted = PlainRidge(alpha).fit(a, Y[train]).predict(b)
                for v in range(Y.shape[1]):
                    table[c, k, v] += np.corrcoef(predicted[:, v], Y[test, v])[0, 1] / len(folds)
    return table


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("n", [50, 90])
def test_components_and_penalties_as_by_a_plain_loop(n, standardise):
    tokens, Y = simulate(n=n, noise=0.5)
    tokens[: n // 5] *= 30  # rows of the first fold: a scale or an axis taken from them would show
    X = tokens.reshape(n, -1)
    counts, folds = [2, 5, 20], list(KFold(5).split(X))
    found = RidgeReadout("pca", counts, ALPHAS, standardise=standardise).fit(tokens, Y)
    table = plain_principal(X, Y, folds, counts, ALPHAS, standardise)
    best = table.reshape(-1, Y.shape[1]).argmax(0)
    assert len(set(zip(found.components_, found.alpha_, strict=True))) > 1
    np.testing.assert_array_equal(found.components_, np.take(counts, best // len(ALPHAS)))
    np.testing.assert_array_equal(found.alpha_, ALPHAS[best % len(ALPHAS)])
    np.testing.assert_allclose(found.cv_score_, table.reshape(-1, Y.shape[1]).max(0), atol=1e-10)
    scaler = StandardScaler(with_std=standardise).fit(X)
    for v in range(Y.shape[1]):
        pca = PCA(found.components_[v], svd_solver="full").fit(scaler.transform(X))
        plain = PlainRidge(found.alpha_[v]).fit(pca.transform(scaler.transform(X)), Y[:, v])
        expected = plain.predict(pca.transform(scaler.transform(X)))
        np.testing.assert_allclose(found.predict(tokens)[:, v], expected, rtol=1e-8)


def test_fewer_components_and_larger_penalties_win_ties():
    rng = np.random.default_rng(0)
    tokens = np.zeros((40, 2, 3))
    tokens[:, 0, 0] = rng.standard_normal(40)  # rank 1: the correlation depends on neither
    Y = tokens[:, 0, :1] + rng.standard_normal((40, 2))
    found = RidgeReadout("pca", components=[1, 2, 3], alphas=[1.0, 10.0]).fit(tokens, Y)
    assert set(found.components_) == {1}
    assert set(found.alpha_) == {10.0}


# Nothing fitted sees test rows


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_scores_see_training_rows_alone(reduce):
    """An affine change of the features of test rows shifts and scales predictions, which r does not see."""
    tokens, Y = simulate()
    train, test = np.arange(60), np.arange(60, 90)
    changed = tokens.copy()
    changed[test] = 100 * (tokens[test] - tokens[train].mean(0)) + tokens[train].mean(0)
    scores = [
        RidgeReadout(reduce, components=[3, 8], alphas=ALPHAS, cv=[(train, test)]).fit(X, Y) for X in (tokens, changed)
    ]
    np.testing.assert_allclose(scores[0].cv_score_, scores[1].cv_score_, atol=1e-9)
    np.testing.assert_array_equal(scores[0].alpha_, scores[1].alpha_)
    assert np.abs(scores[0].coef_ - scores[1].coef_).max() > 0.01  # final weights do see them


@pytest.mark.parametrize("reduce", ["flat", "pca"])
def test_folds_are_of_whole_groups(reduce):
    tokens, Y = simulate()
    groups = np.random.default_rng(1).integers(0, 7, 90)
    folds = list(GroupKFold(5).split(tokens, groups=groups))
    by_groups = RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y, groups=groups)
    by_rows = RidgeReadout(reduce, alphas=ALPHAS, cv=folds).fit(tokens, Y)
    np.testing.assert_array_equal(by_groups.cv_score_, by_rows.cv_score_)
    assert np.abs(by_groups.cv_score_ - RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y).cv_score_).max() > 1e-6


# Units without responses, and ways to hand over tokens


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_units_with_nan_are_left_out_and_constant_ones_predicted(reduce):
    tokens, Y = simulate()
    whole = RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y)
    Y[3, 1], Y[:, 4] = np.nan, 2.5
    with pytest.warns(UserWarning) as caught:
        found = RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y)
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2
    assert messages[0].startswith("1 of 6 units have no cross-validated score")
    assert messages[1].startswith("1 of 6 units hold NaN in Y")
    predicted, others = found.predict(tokens), [0, 2, 3, 5]
    assert np.isnan(predicted[:, 1]).all()
    assert (predicted[:, 4] == 2.5).all()
    np.testing.assert_allclose(predicted[:, others], whole.predict(tokens)[:, others], rtol=1e-10)
    np.testing.assert_array_equal(np.isnan(found.validation_r_), [False, True, False, False, True, False])
    np.testing.assert_array_equal(np.isnan(found.alpha_), [False, True, False, False, False, False])
    assert np.isnan(found.unit_scores(tokens, Y)[[1, 4]]).all()
    module = found.torch_module()
    x = torch.from_numpy(tokens[:5]).float().requires_grad_()
    out = module(x)
    np.testing.assert_allclose(out.detach().numpy(), predicted[:5], rtol=1e-3, atol=1e-2)
    out[:, 0].sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_ways_to_hand_over_the_same_tokens(reduce, tmp_path):
    tokens, Y = simulate(dtype=np.float32)
    half = tokens.astype(np.float16)
    expected = RidgeReadout(reduce, alphas=ALPHAS).fit(half.astype(np.float32), Y).predict(half.astype(np.float32))
    np.save(tmp_path / "tokens.npy", half)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    for X in (half, mapped, half.reshape(90, -1), np.asfortranarray(half)):
        encoder = RidgeReadout(reduce, alphas=ALPHAS, grid=(3, 4)).fit(X, Y)
        np.testing.assert_allclose(encoder.predict(X), expected, atol=1e-4)  # products of another layout
        assert (encoder.n_tokens_, encoder.token_features_, encoder.n_features_in_) == (12, 5, 60)
        np.testing.assert_allclose(encoder.predict(np.asarray(X[:1])), expected[:1], atol=1e-4)
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(again.predict(half), encoder.predict(half))
    np.testing.assert_array_equal(clone(encoder).fit(half, Y).coef_, encoder.fit(half, Y).coef_)


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_vector_drops_the_unit_axis(reduce):
    tokens, Y = simulate()
    whole, single = (RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, y) for y in (Y[:, :1], Y[:, 0]))
    assert np.ndim(single.alpha_) == np.ndim(single.validation_r_) == np.ndim(single.response_mean_) == 0
    assert single.predict(tokens).shape == (90,)
    np.testing.assert_array_equal(single.predict(tokens), whole.predict(tokens)[:, 0])
    np.testing.assert_array_equal(single.coef_, whole.coef_[:, 0])


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
@pytest.mark.parametrize("v", [1, 200])  # weights as one matrix, or as two
def test_module_computes_the_predictions_and_their_gradients(reduce, v):
    tokens, Y = simulate(n=30, v=v)
    encoder = RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y)
    x = torch.from_numpy(tokens).float().requires_grad_()
    out = encoder.torch_module()(x)
    np.testing.assert_allclose(out.detach().numpy(), encoder.predict(tokens), atol=2e-3 * Y.std())
    out[:, 0].sum().backward()
    coef = encoder.coef_[:, 0].reshape(-1, 5)
    expected = np.broadcast_to(coef / 12 if reduce == "pooled" else coef, tokens.shape)
    np.testing.assert_allclose(x.grad.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_criterion_decides_what_is_kept():
    tokens, Y = simulate()
    by_r2 = RidgeReadout(alphas=ALPHAS, criterion="r2").fit(tokens, Y)
    expected = RidgeCV(ALPHAS, score="r2", standardise=True).fit(tokens.reshape(90, -1), Y)
    np.testing.assert_allclose(by_r2.cv_score_, expected.cv_score_, atol=1e-12)
    assert not hasattr(by_r2, "validation_r_")
    assert not hasattr(
        by_r2.set_params(criterion="r").fit(tokens, Y).set_params(criterion="r2").fit(tokens, Y), "validation_r_"
    )
    np.testing.assert_allclose(by_r2.score(tokens, Y), expected._r2(tokens.reshape(90, -1), Y), rtol=1e-10)


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_constant_tokens_predict_the_mean(reduce):
    _, Y = simulate()
    tokens = np.full((90, 4, 3), 2.5)
    with pytest.warns(UserWarning, match="6 of 6 units have no cross-validated score"):
        encoder = RidgeReadout(reduce, alphas=ALPHAS).fit(tokens, Y)
    np.testing.assert_allclose(encoder.predict(tokens), np.broadcast_to(Y.mean(0), Y.shape), rtol=1e-12)
    assert np.isnan(encoder.validation_r_).all()
    out = encoder.torch_module()(torch.from_numpy(tokens[:2]).float())
    np.testing.assert_allclose(out.numpy(), np.broadcast_to(Y.mean(0), (2, 6)), rtol=1e-5)


@pytest.mark.parametrize("reduce", ["flat", "pooled", "pca"])
def test_tokens_in_a_store_or_a_file(reduce, tmp_path):
    tokens, Y = simulate(dtype=np.float32)
    half = tokens.astype(np.float16)
    store = TokenStore.build(tmp_path / "store", iter(np.array_split(half, 4)), 90, (3, 4))
    expected = RidgeReadout(reduce, alphas=ALPHAS).fit(half, Y)
    found = RidgeReadout(reduce, alphas=ALPHAS).fit(store, Y)
    assert found.grid_ == (3, 4)
    np.testing.assert_allclose(found.predict(store), expected.predict(half), atol=1e-4)
    with h5py.File(tmp_path / "tokens.h5", "w") as file:
        file["tokens"] = half
        found = RidgeReadout(reduce, alphas=ALPHAS).fit(file["tokens"], Y)
        np.testing.assert_allclose(found.predict(file["tokens"]), expected.predict(half), atol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reduce": "pool"}, "reduce.*'pool'.*pooled"),
        ({"criterion": "r3"}, "criterion.*'r3'"),
        ({"reduce": "pca", "components": 0}, "components=0: expected a whole number from 1"),
        ({"reduce": "pca", "components": ()}, "components=.*expected a whole number from 1"),
        ({"alphas": [0.0]}, "alphas holds 0"),
        ({"cv": 91}, "cv=91: the number of folds must lie between 2 and 90"),
        ({"grid": (3, 5)}, r"grid=\(3, 5\) has 15 places"),
        ({"max_memory": -1}, "max_memory=-1"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    tokens, Y = simulate()
    with pytest.raises(ValueError, match=message):
        RidgeReadout(**parameters).fit(tokens, Y)


def test_data_that_cannot_be_fitted():
    tokens, Y = simulate()
    with pytest.raises(ValueError, match="X has 1 sample"):
        RidgeReadout().fit(tokens[:1], Y[:1])
    with pytest.raises(ValueError, match="every unit of Y .* holds NaN"):
        RidgeReadout().fit(tokens, np.where(np.arange(90)[:, None] == 3, np.nan, Y))
    wrong = tokens.copy()
    wrong[[4, 7], 2, 1] = np.nan
    for reduce in ("flat", "pooled", "pca"):
        with pytest.raises(ValueError, match="NaN or infinity: 2 of the 90 stimuli"):
            RidgeReadout(reduce).fit(wrong, Y)
    encoder = RidgeReadout(alphas=ALPHAS).fit(tokens, Y)
    with pytest.raises(ValueError, match="the fit had 12 tokens of 5 features"):
        encoder.predict(tokens[:, :6])


def test_quiet_where_all_is_well():
    tokens, Y = simulate(noise=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reduce in ("flat", "pooled", "pca"):
            RidgeReadout(reduce, components=(4, 16, 64)).fit(tokens, Y)
