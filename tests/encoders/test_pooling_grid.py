import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.linear.ridge import RidgeCV
from neuralign.encoders.spatial.pooling_grid import PoolingGridReadout, fields_of, gaussian_masses
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
@parametrize_with_checks([PoolingGridReadout(), PoolingGridReadout(criterion="r2", standardise=False)])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def simulate(fields, n=300, grid=(6, 6), d=4, noise=0.5, seed=0, dtype=np.float64):
    """Units that weight features of tokens pooled with the fields (unit, place)."""
    rng = np.random.default_rng(seed)
    tokens = rng.standard_normal((n, grid[0] * grid[1], d)) * rng.uniform(0.5, 3, d) + 4
    weights = rng.standard_normal((len(fields), d))
    Y = np.einsum("vt,ntd,vd->nv", fields, tokens, weights)
    return tokens.astype(dtype), (Y + noise * Y.std(0) * rng.standard_normal(Y.shape) + 7).astype(dtype)


# Fields


@pytest.mark.parametrize("grid", [(6, 6), (4, 9), (1, 1), (1, 5)])
def test_masses_are_integrals_over_square_places(grid):
    rng = np.random.default_rng(0)
    x, y, size = rng.uniform(0, 1, 7), rng.uniform(0, 1, 7), rng.uniform(0.05, 1, 7)
    found = gaussian_masses(grid, x, y, size).reshape(7, *grid)
    np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-12)
    h, w = grid
    for k in range(7):
        expected = np.empty(grid)
        for i in range(h):
            for j in range(w):  # in units of places, which are square
                along_x = np.diff(norm.cdf([j, j + 1], x[k] * w, size[k] * w))
                along_y = np.diff(norm.cdf([i, i + 1], y[k] * h, size[k] * w))
                expected[i, j] = along_x[0] * along_y[0]
        np.testing.assert_allclose(found[k], expected / expected.sum(), rtol=1e-9, atol=1e-14)


def test_masses_at_both_ends_of_size():
    tiny = gaussian_masses((3, 4), np.array([0.6]), np.array([0.2]), np.array([1e-6]))
    np.testing.assert_array_equal(np.flatnonzero(tiny), [2])  # the place that holds the centre: column 2, row 0
    between = gaussian_masses((1, 4), np.array([0.5]), np.array([0.5]), np.array([1e-6]))
    np.testing.assert_allclose(between[0], [0, 0.5, 0.5, 0])
    corner = gaussian_masses((2, 2), np.array([0.0]), np.array([1.0]), np.array([1e-3]))
    np.testing.assert_array_equal(corner[0], [0, 0, 1, 0])  # y goes down
    wide = gaussian_masses((3, 4), np.array([0.1, 0.5]), np.array([0.9, 0.5]), np.array([1e6, np.inf]))
    np.testing.assert_allclose(wide, 1 / 12, rtol=1e-9)


def test_fields_from_the_largest_and_each_once():
    fields, masses = fields_of((6, 6), None, (0.1, 0.4), True)
    assert len(fields) == len(masses) == 73
    assert fields["size"].iloc[0] == np.inf
    assert (np.diff(fields["size"].to_numpy()[1:]) <= 0).all()
    np.testing.assert_allclose(fields[["x", "y"]].iloc[1:4], [[1 / 12, 1 / 12], [3 / 12, 1 / 12], [5 / 12, 1 / 12]])
    assert len(fields_of((6, 6), None, (0.1, 0.4), False)[0]) == 72
    # Below the size of a place all are that place.
    alike, _ = fields_of((6, 6), None, (1e-4, 2e-4, 3e-4), False)
    assert len(alike) == 36
    assert (alike["size"] == 3e-4).all()
    one, mass = fields_of((1, 1), None, (0.1, 0.4), True)
    assert one.to_numpy().tolist() == [[0.5, 0.5, np.inf]]
    assert mass.tolist() == [[1.0]]
    assert len(fields_of((31, 40), None, 0.01, False)[0]) == 225  # 15 centres a side
    np.testing.assert_allclose(fields_of((6, 6), [[0.2, 0.7]], [0.1], False)[0], [[0.2, 0.7, 0.1]])


# Planted fields


def test_planted_fields_are_found():
    fields, masses = fields_of((6, 6), None, (0.08, 0.3), True)
    planted = np.array([0, 5, 20, 36, 37, 45, 60, 72])
    tokens, Y = simulate(masses[planted], n=600, noise=0.2)
    encoder = PoolingGridReadout(sizes=(0.08, 0.3), alphas=ALPHAS, grid=(6, 6)).fit(tokens, Y)
    np.testing.assert_array_equal(encoder.field_, planted)
    assert encoder.validation_r_.min() > 0.95
    np.testing.assert_array_equal(encoder.fields_.to_numpy(), fields.to_numpy())
    for unit, field in enumerate(planted):
        np.testing.assert_array_equal(encoder.receptive_field(unit), masses[field].reshape(6, 6))


def test_a_field_off_the_grid_gives_its_neighbour():
    mass = gaussian_masses((8, 8), np.array([0.31]), np.array([0.7]), np.array([0.15]))
    tokens, Y = simulate(mass, grid=(8, 8), noise=0.3)
    encoder = PoolingGridReadout(sizes=0.125, alphas=ALPHAS, grid=(8, 8)).fit(tokens, Y)
    x, y = encoder.fields_.loc[encoder.field_[0], ["x", "y"]]
    assert abs(x - 0.31) < 0.5 / 8 and abs(y - 0.7) < 0.5 / 8


def test_mirrored_tokens_give_mirrored_fields():
    masses = fields_of((4, 6), None, (0.1, 0.3), False)[1][[3, 20, 37]]
    tokens, Y = simulate(masses, grid=(4, 6))
    mirrored = tokens.reshape(300, 4, 6, 4)[:, :, ::-1].reshape(300, 24, 4)
    first, second = (
        PoolingGridReadout(sizes=(0.1, 0.3), alphas=ALPHAS, grid=(4, 6)).fit(X, Y) for X in (tokens, mirrored)
    )
    for unit in range(3):
        np.testing.assert_allclose(first.receptive_field(unit)[:, ::-1], second.receptive_field(unit), atol=1e-12)
    np.testing.assert_allclose(first.predict(tokens), second.predict(mirrored), rtol=1e-9)


# The engine


@pytest.mark.parametrize("standardise", [False, True])
def test_one_token_is_the_linear_model(standardise):
    tokens, Y = simulate(np.ones((5, 1)), grid=(1, 1), d=8, noise=1.0)
    expected = RidgeCV(ALPHAS, standardise=standardise).fit(tokens[:, 0], Y)
    for X, grid in ((tokens, (1, 1)), (tokens[:, 0], None)):
        found = PoolingGridReadout(alphas=ALPHAS, standardise=standardise, grid=grid).fit(X, Y)
        np.testing.assert_array_equal(found.alpha_, expected.alpha_)
        np.testing.assert_allclose(found.cv_score_, expected.cv_score_, atol=1e-12)
        np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
        np.testing.assert_allclose(found.predict(X), expected.predict(tokens[:, 0]), rtol=1e-11)


@pytest.mark.parametrize("shape", [(300, 4), (40, 60)])  # the second in inner products of rows
def test_every_field_is_ridge_regression_from_pooled_features(shape):
    n, d = shape
    masses = fields_of((3, 3), None, (0.15, 0.4), True)[1]
    tokens, Y = simulate(masses[[0, 4, 9, 14, 18]], n=n, d=d, grid=(3, 3))
    scores, predictions = [], []
    for mass in masses:
        pooled = np.einsum("t,ntd->nd", mass, tokens)
        one = RidgeCV(ALPHAS, standardise=True).fit(pooled, Y)
        scores.append(one.cv_score_)
        predictions.append(one.predict(pooled))
    field, at = np.argmax(scores, 0), np.arange(5)
    encoder = PoolingGridReadout(sizes=(0.15, 0.4), alphas=ALPHAS, grid=(3, 3)).fit(tokens, Y)
    np.testing.assert_array_equal(encoder.field_, field)
    np.testing.assert_allclose(encoder.cv_score_, np.array(scores)[field, at], atol=1e-9)
    np.testing.assert_allclose(encoder.predict(tokens), np.array(predictions)[field, :, at].T, rtol=1e-8)


def test_ties_go_to_the_larger_field_and_nan_never_wins():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((60, 1, 3)).astype(np.float32)
    tokens = np.repeat(one, 9, axis=1)  # alike at every place
    Y = one[:, 0] @ rng.standard_normal((3, 4)) + rng.standard_normal((60, 4))
    encoder = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3)).fit(tokens, Y)
    assert (encoder.field_ == 0).all()
    assert encoder.fields_.loc[0, "size"] == np.inf
    # Where only one place varies, fields that do not reach it have no score.
    tokens = np.zeros((60, 9, 3))
    tokens[:, 8] = one[:, 0]
    encoder = PoolingGridReadout(sizes=[1e-3], alphas=ALPHAS, uniform=False, grid=(3, 3)).fit(tokens, Y)
    assert (encoder.field_ == 8).all()


def test_test_rows_leave_the_weights_of_a_fold_as_they_are():
    tokens, Y = simulate(np.eye(36)[:3])
    train, test = np.arange(200), np.arange(200, 300)
    changed = tokens.copy()
    changed[test] = 1000 * tokens[test] - 3
    trained, scores = [], []
    for X in (tokens, changed):
        encoder = PoolingGridReadout(grid=(6, 6), cv=[(train, test)])
        checked, responses, folds, alphas = encoder._checked(X, Y, None)
        _, features = next(encoder._pooled(checked, np.eye(36)[:1]))
        fit, design, plan = encoder._solved(features, responses, folds, alphas, weights=False)
        trained.append(design.trains(0, plan.by_rows)[0])
        scores.append(fit.score)
    # To the rounding of the offset that all rows share, which is taken out first.
    np.testing.assert_allclose(trained[0].eigenvalues, trained[1].eigenvalues, rtol=1e-11)
    np.testing.assert_allclose(trained[0].top, trained[1].top, rtol=1e-11)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-9)  # r of an affine change of the predictions


def test_folds_are_of_whole_groups():
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3), noise=1.0)
    groups = np.random.default_rng(1).integers(0, 7, 80)
    folds = list(GroupKFold(5).split(tokens, groups=groups))
    by_groups = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3)).fit(tokens, Y, groups=groups)
    by_rows = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3), cv=folds).fit(tokens, Y)
    by_random = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3), cv=KFold(5, shuffle=True)).fit(
        tokens, Y
    )
    np.testing.assert_array_equal(by_groups.cv_score_, by_rows.cv_score_)
    assert np.abs(by_groups.cv_score_ - by_random.cv_score_).max() > 1e-6


def test_result_does_not_depend_on_memory():
    masses = fields_of((4, 4), None, (0.1, 0.4), True)[1]
    tokens, Y = simulate(masses[[0, 10, 30]], grid=(4, 4))
    whole, piecewise = (
        PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(4, 4), max_memory=memory).fit(tokens, Y)
        for memory in (None, 50_000)
    )
    np.testing.assert_array_equal(whole.field_, piecewise.field_)
    np.testing.assert_allclose(whole.coef_, piecewise.coef_, rtol=1e-8)


# Units without responses, and ways to hand over tokens


def test_units_with_nan_are_left_out_and_constant_ones_predicted():
    masses = fields_of((4, 4), None, (0.1, 0.4), True)[1][[0, 5, 10, 20, 30]]
    tokens, Y = simulate(masses, grid=(4, 4))
    parameters = {"sizes": (0.1, 0.4), "alphas": ALPHAS, "grid": (4, 4)}
    whole = PoolingGridReadout(**parameters).fit(tokens, Y)
    Y[3, 1], Y[:, 3] = np.nan, 2.5
    with pytest.warns(UserWarning) as caught:
        found = PoolingGridReadout(**parameters).fit(tokens, Y)
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2  # and not one for every field
    assert messages[0].startswith("1 of 5 units have no cross-validated score")
    assert messages[1].startswith("1 of 5 units hold NaN in Y")
    predicted, others = found.predict(tokens), [0, 2, 4]
    assert np.isnan(predicted[:, 1]).all()
    assert (predicted[:, 3] == 2.5).all()
    np.testing.assert_allclose(predicted[:, others], whole.predict(tokens)[:, others], rtol=1e-9)
    np.testing.assert_array_equal(found.field_[others], whole.field_[others])
    assert found.field_[1] == -1 and np.isnan(found.alpha_[1]) and np.isnan(found.receptive_field(1)).all()
    module = found.torch_module()
    x = torch.from_numpy(tokens[:5]).float().requires_grad_()
    out = module(x)
    np.testing.assert_allclose(out.detach().numpy(), predicted[:5], rtol=1e-4, atol=1e-3)
    out[:, 0].sum().backward()
    expected = np.einsum("t,d->td", found.receptive_field(0).ravel(), found.coef_[:, 0])
    np.testing.assert_allclose(x.grad.numpy(), np.broadcast_to(expected, x.shape), atol=1e-5)


def test_ways_to_hand_over_the_same_tokens(tmp_path):
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3), dtype=np.float32)
    half = tokens.astype(np.float16)
    np.save(tmp_path / "tokens.npy", half)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    encoder = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3))
    expected = encoder.fit(half.astype(np.float32), Y).predict(half)
    assert expected.dtype == np.float32
    for X in (half, mapped, half.reshape(80, -1)):
        found = clone(encoder).fit(X, Y)
        np.testing.assert_allclose(found.predict(X), expected, atol=1e-4)
        np.testing.assert_allclose(found.predict(np.asarray(X[:1])), expected[:1], atol=1e-4)
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(again.predict(half), expected)


def test_a_store_brings_its_grid(tmp_path):
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3), dtype=np.float32)
    half = tokens.astype(np.float16)
    store = TokenStore.build(tmp_path / "store", iter([half[:50], half[50:]]), 80, (3, 3))
    expected = PoolingGridReadout(sizes=0.1, alphas=ALPHAS, grid=(3, 3)).fit(half, Y)
    found = PoolingGridReadout(sizes=0.1, alphas=ALPHAS).fit(store, Y)
    np.testing.assert_array_equal(found.field_, expected.field_)
    np.testing.assert_allclose(found.predict(store), expected.predict(half), atol=1e-4)


def test_constant_tokens_predict_the_mean():
    _, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3))
    tokens = np.full((80, 9, 4), 2.5)
    with pytest.warns(UserWarning, match="2 of 2 units have no cross-validated score"):
        encoder = PoolingGridReadout(sizes=0.1, alphas=ALPHAS, grid=(3, 3)).fit(tokens, Y)
    np.testing.assert_allclose(encoder.predict(tokens), np.broadcast_to(Y.mean(0), Y.shape), rtol=1e-9)
    assert (encoder.field_ == 0).all()  # the largest


def test_vector_drops_the_unit_axis():
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3))
    whole, single = (
        PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3)).fit(tokens, y) for y in (Y[:, :1], Y[:, 0])
    )
    assert np.ndim(single.field_) == np.ndim(single.alpha_) == np.ndim(single.validation_r_) == 0
    assert single.predict(tokens).shape == (80,)
    np.testing.assert_array_equal(single.predict(tokens), whole.predict(tokens)[:, 0])
    np.testing.assert_array_equal(single.receptive_field(), whole.receptive_field(0))


# What is refused


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"grid": None}, r"tokens of shape \(80, 9, 4\) come without a grid: a Gaussian field needs places"),
        ({"grid": (2, 4)}, r"grid=\(2, 4\) has 8 places"),
        ({"sizes": (0.1, 0.0)}, "sizes holds 0"),
        ({"sizes": (0.1, np.inf)}, "sizes holds inf.*uniform=True"),
        ({"sizes": "large"}, "sizes='large': expected numbers above zero"),
        ({"sizes": (), "uniform": False}, "no field is left"),
        ({"centres": [[0.5, 1.5]]}, r"centres holds \(0.5, 1.5\); expected fractions of the image"),
        ({"centres": [0.5, 0.5]}, r"centres has shape \(2,\); expected \(centre, 2\)"),
        ({"criterion": "mse"}, "criterion.*'mse'"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3))
    with pytest.raises(ValueError, match=message):
        PoolingGridReadout(**{"grid": (3, 3)} | parameters).fit(tokens, Y)


def test_data_that_cannot_be_used():
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3))
    encoder = PoolingGridReadout(sizes=(0.1, 0.4), alphas=ALPHAS, grid=(3, 3))
    with pytest.raises(ValueError, match="X has 1 sample"):
        encoder.fit(tokens[:1], Y[:1])
    wrong = tokens.copy()
    wrong[[4, 7], 2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity: 2 of the 80 stimuli"):
        encoder.fit(wrong, Y)
    encoder.fit(tokens, Y)
    with pytest.raises(ValueError, match="the fit had 9 tokens of 4 features"):
        encoder.predict(tokens[:, :, :3])
    for unit in (2, -1, 0.5):
        with pytest.raises(ValueError, match=f"unit={unit!r}: expected a whole number from 0 to 1"):
            encoder.receptive_field(unit)


def test_quiet_where_all_is_well():
    tokens, Y = simulate(np.eye(9)[[1, 5]], n=80, grid=(3, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PoolingGridReadout(sizes=(0.1, 0.4), grid=(3, 3)).fit(tokens, Y)
