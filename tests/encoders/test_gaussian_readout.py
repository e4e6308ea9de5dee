import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.spatial import sampling
from neuralign.encoders.spatial.gaussian import COVARIANCES, Centres, GaussianModule, GaussianReadout

GRID = (6, 8)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@parametrize_with_checks(
    [GaussianReadout(epochs=3, lr=0.03)],
    expected_failed_checks=lambda estimator: {
        "check_regressor_multioutput": "predictions are float32, as those of all encoders that torch trains"
    },
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def read_at(maps, points):
    """Maps (row, height, width, feature) at points (unit, 2), by scipy."""
    h, w = maps.shape[1:3]
    places = np.stack([((points[:, 1] + 1) * h - 1) / 2, ((points[:, 0] + 1) * w - 1) / 2])
    read = [
        [map_coordinates(one[..., feature], places, order=1, mode="nearest") for feature in range(maps.shape[3])]
        for one in maps
    ]
    return np.array(read).transpose(0, 2, 1)  # row, unit, feature


def point_world(n=800, v=6, d=6, smooth=0.0, noise=0.4, positions=None, seed=0):
    """Units that read features at one point each; the last 200 stimuli are for testing."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, *GRID, d))
    if smooth:
        X = gaussian_filter(X, (0, smooth, smooth, 0))
        X /= X.std()
    if positions is None:
        positions = rng.uniform(-0.8, 0.8, (v, 2))
    clean = np.einsum("nvd,vd->nv", read_at(X, positions), rng.standard_normal((v, d)))
    clean /= clean.std(0)
    Y = clean + noise * rng.standard_normal(clean.shape)
    return X.reshape(n, -1, d).astype("f4"), Y, clean, positions


def cells_off(encoder, positions):
    """How far positions lie from the planted ones, in cells, on the worse axis."""
    return (np.abs(encoder.position_ - positions) * np.array([GRID[1], GRID[0]]) / 2).max(1)


def quick(**parameters):
    return GaussianReadout(**({"grid": GRID, "lr": 0.01, "epochs": 60} | parameters))


def drawn_module(covariance="full", v=4, d=5, width=0.2):
    torch.manual_seed(0)
    return GaussianModule(
        torch.randn(v, d), Centres(torch.rand(v, 2) - 0.5, GRID), torch.randn(v), GRID, covariance, width
    )


def test_predictions_read_the_centres():
    module = drawn_module().eval()
    x = torch.randn(3, 48, 5)
    features = read_at(x.view(3, *GRID, 5).numpy(), module.centres().detach().numpy())
    expected = np.einsum("nvd,vd->nv", features, module.weight.detach().numpy()) + module.bias.detach().numpy()
    np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("per_block", [1, 3])
def test_blocks_of_units_change_nothing(monkeypatch, per_block):
    x, found = torch.randn(3, 48, 5), []
    for chunk in (sampling.CHUNK, per_block * 4 * 3 * 5):
        monkeypatch.setattr(sampling, "CHUNK", chunk)
        module = drawn_module().train()
        torch.manual_seed(1)
        y = module(x)
        y.square().sum().backward()
        found.append([y.detach(), *(p.grad for p in module.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_training_draws_points_around_the_centres(covariance):
    module = drawn_module(covariance, width=0.1).train()
    with torch.no_grad():
        module.spread.mul_(torch.rand(module.spread.shape) + 0.5)
        if covariance == "full":
            module.spread[:, 1] = 0.08
        points = module.points(40_000).numpy()
        centres, A = module.centres().numpy(), module.factors().numpy()
    assert points.shape == (40_000, 4, 2)
    for unit in range(4):
        np.testing.assert_allclose(points[:, unit].mean(0), centres[unit], atol=0.003)
        np.testing.assert_allclose(np.cov(points[:, unit].T), A[unit] @ A[unit].T, atol=5e-4)
    assert (A[:, 0, 1] == 0).all()
    assert (A[:, 1, 0] != 0).all() == (covariance == "full")
    assert np.array_equal(A[:, 0, 0], A[:, 1, 1]) == (covariance == "isotropic")
    assert module.eval().points(7).shape == (1, 4, 2)


def test_points_and_centres_stay_in_the_image():
    module = drawn_module(width=3.0).train()
    assert module.points(500).abs().max() == 1
    with torch.no_grad():
        module.centres.position.copy_(torch.tensor([[2.0, -3.0], [0.1, 0.2], [-1.5, 0.0], [0.0, 1.01]]))
        module.constrain()
    x, y = 7 / 8, 5 / 6  # centres of the outer cells: beyond them there is nothing else to read, and no gradient
    expected = [[x, -y], [0.1, 0.2], [-x, 0], [0, y]]
    np.testing.assert_allclose(module.centres().detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("covariance, smooth", [("full", 0.0), ("isotropic", 0.0), ("full", 1.0), ("diagonal", 1.0)])
def test_planted_positions_are_recovered(covariance, smooth):
    X, Y, clean, positions = point_world(smooth=smooth)
    encoder = quick(covariance=covariance).fit(X[:600], Y[:600])
    assert cells_off(encoder, positions).max() < 0.5
    assert encoder.unit_scores(X[600:], clean[600:]).min() > 0.95
    assert encoder.width_.shape == (6, 2) and (encoder.width_ < 0.3).all()


def test_published_starts_are_drawn_within_their_range():
    X, Y, _, _ = point_world(n=120, v=40)
    encoder = quick(init_position=0.25, init_width=0.0, covariance="isotropic", epochs=1, lr=1e-12).fit(X, Y)
    assert np.abs(encoder.position_).max() <= 0.25 and np.abs(encoder.position_).max() > 0.2
    assert np.abs(encoder.position_.mean(0)).max() < 0.1
    np.testing.assert_allclose(encoder.width_, 0, atol=1e-6)


def test_positions_that_coordinates_predict():
    rng = np.random.default_rng(5)
    coordinates = rng.uniform(-1, 1, (40, 2))
    turn = np.array([[0.5, 0.4], [-0.4, 0.5]])
    X, Y, clean, positions = point_world(v=40, smooth=1.0, positions=coordinates @ turn)
    units = pd.DataFrame({"x": 10 + 3 * coordinates[:, 0], "y": 100 * coordinates[:, 1], "region": "V1"})
    encoder = quick(coordinates=("x", "y"), lr=0.03, epochs=100).fit(X[:600], Y[:600], units=units)
    off = cells_off(encoder, positions)
    assert np.median(off) < 0.5 and np.mean(off < 1) > 0.9
    assert np.abs(encoder.position_).max() <= 1
    assert np.nanmean(encoder.unit_scores(X[600:], clean[600:])) > 0.9


def test_units_that_are_left_out_leave_out_their_coordinates():
    X, Y, _, _ = point_world(n=200)
    Y = Y.copy()
    Y[:, 1] = np.nan
    units = pd.DataFrame({"x": [0.0, np.nan, 1, 2, 3, 4]})
    with pytest.warns(UserWarning, match="1 of 6 units"):
        encoder = quick(coordinates=["x"], epochs=2).fit(X, Y, units=units)
    assert np.isnan(encoder.position_[1]).all() and np.isfinite(encoder.position_[[0, 2, 3, 4, 5]]).all()
    assert np.isnan(encoder.width_[1]).all() and np.isnan(encoder.feature_weights_[1]).all()


def test_a_seed_is_an_outcome():
    X, Y, _, _ = point_world(n=200)
    one = quick(epochs=4).fit(X, Y)
    np.testing.assert_array_equal(one.predict(X), clone(one).fit(X, Y).predict(X))
    assert not np.array_equal(one.predict(X), clone(one).set_params(seed=1).fit(X, Y).predict(X))


def test_training_goes_on_from_a_checkpoint_at_the_same_bits(tmp_path):
    X, Y, _, _ = point_world(n=200)
    whole = quick(epochs=5).fit(X, Y)
    first = quick(epochs=2, checkpoint=tmp_path / "fit.safetensors").fit(X, Y)
    rest = clone(first).set_params(epochs=5).fit(X, Y)
    assert rest.history_.epoch.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(rest.predict(X), whole.predict(X))
    np.testing.assert_array_equal(rest.position_, whole.position_)


def test_one_token_is_linear():
    X, Y, _, _ = point_world(n=300)
    encoder = quick(grid=None, epochs=5).fit(X[:, 3], Y)
    assert encoder.grid_ == (1, 1)
    a, b = X[:1, 3], X[1:2, 3]
    middle = encoder.predict((a + b) / 2)
    np.testing.assert_allclose(middle, (encoder.predict(a) + encoder.predict(b)) / 2, atol=1e-4)


def test_half_precision_keeps_r():
    X, Y, clean, _ = point_world()
    full, half = (quick(precision=precision).fit(X[:600], Y[:600]) for precision in ("float32", "bfloat16"))
    difference = full.unit_scores(X[600:], clean[600:]) - half.unit_scores(X[600:], clean[600:])
    assert abs(difference.mean()) < 1e-3


@pytest.mark.parametrize(
    "parameters, units, words",
    [
        ({"covariance": "ful"}, None, "full"),
        ({"init_width": -1.0}, None, "init_width=-1.0: expected a number"),
        ({"init_position": "middle"}, None, "init_position='middle': expected a number"),
        ({"mlp": 0, "coordinates": ["x"]}, {"x": range(6)}, "mlp=0: expected a whole number"),
        ({"coordinates": ["x", "y"]}, None, "coordinates needs columns 'x', 'y' of a table of units"),
        ({"coordinates": ["xx"]}, {"x": range(6), "depth": 0}, "'xx'.*x"),
        ({"coordinates": []}, {"x": range(6)}, "coordinates is empty"),
        ({"coordinates": ["x"]}, {"x": [0, 1, np.nan, 3, 4, np.nan]}, "2 of 6 units, the first of them unit 2"),
        ({"coordinates": "x"}, {"x": list("abcdef")}, "coordinates 'x' hold what is no number"),
        ({"grid": None}, None, "a Gaussian field needs places"),
    ],
)
def test_what_cannot_be_is_refused(parameters, units, words):
    X, Y, _, _ = point_world(n=50)
    with pytest.raises(ValueError, match=words):
        quick(**parameters).fit(X, Y, units=None if units is None else pd.DataFrame(units))
