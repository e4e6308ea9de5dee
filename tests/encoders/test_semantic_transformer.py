import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.spatial import sampling
from neuralign.encoders.spatial.factorized import FactorizedModule, FactorizedReadout
from neuralign.encoders.spatial.sampling import TRANSFORMS, cell_centres
from neuralign.encoders.spatial.semantic_transformer import (
    WARPS,
    SemanticTransformerModule,
    SemanticTransformerReadout,
)

GRID = (4, 5)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@parametrize_with_checks(
    [SemanticTransformerReadout(epochs=2, lr=0.01)],
    expected_failed_checks=lambda estimator: {
        "check_regressor_multioutput": "predictions are float32, as those of all encoders that torch trains"
    },
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def drawn_module(transform="affine", warp="both", v=3, d=4, moving=True):
    """A module whose masks are not uniform and, if it is moving, whose warps depend on the tokens."""
    torch.manual_seed(0)
    module = SemanticTransformerModule(
        torch.randn(v, d), torch.randn(v), GRID, transform, warp, 2, 8, 1e-4, torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        module.place.copy_(torch.rand(v, 20))
        for network in (module.of_units, module.of_features):
            if network is not None and moving:
                network[-1].weight.normal_(0, 0.3)
                network[-1].bias.normal_(0, 0.2)
    return module


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_without_warps_it_is_the_factorised_readout(transform, warp):
    module = drawn_module(transform, warp, moving=False)
    same = FactorizedModule(torch.zeros(3, 4), torch.zeros(3, 20), torch.zeros(3), "l2")
    with torch.no_grad():
        for name in ("place", "weight", "bias"):
            getattr(same, name).copy_(getattr(module, name))
    x = torch.randn(6, 20, 4)
    torch.testing.assert_close(module(x), same(x), atol=1e-5, rtol=1e-5)


def slow_outputs(module, x):
    """Every stimulus and unit by itself: the map of each feature and the mask warped by scipy."""
    n, t, d = x.shape
    h, w = GRID
    centres = cell_centres(GRID).double().numpy()
    masks, weight, bias = (value.detach().double().numpy() for value in (module.masks(), module.weight, module.bias))

    def matrix(network, which, row):
        with torch.no_grad():
            read = torch.stack([module.localiser(x[row, place]) for place in range(t)]).flatten()
            a, b, c, d2, e, f = network(read).view(-1, 6)[which].double().numpy()
        return np.array([[1 + a, b, c], [d2, 1 + e, f]])

    def warped(values, theta, mode):
        points = centres @ theta[:, :2].T + theta[:, 2]
        places = [((points[:, 1] + 1) * h - 1) / 2, ((points[:, 0] + 1) * w - 1) / 2]
        return map_coordinates(values.reshape(h, w), places, order=1, mode=mode, cval=0.0)

    outputs = np.empty((n, len(weight)))
    for row in range(n):
        features = x[row].double().numpy()
        if module.of_features is not None:
            moved = [warped(features[:, c], matrix(module.of_features, c, row), "nearest") for c in range(d)]
            features = np.stack(moved, 1)
        for unit in range(len(weight)):
            mask = masks[unit]
            if module.of_units is not None:
                mask = warped(mask, matrix(module.of_units, unit, row), "grid-constant")
            outputs[row, unit] = mask @ features @ weight[unit] + bias[unit]
    return outputs


@pytest.mark.parametrize("per_block", [1, 2, 3])
@pytest.mark.parametrize("warp", WARPS)
def test_warps_are_those_of_the_slow_reference(monkeypatch, warp, per_block):
    module, x = drawn_module(warp=warp), torch.randn(6, 20, 4)
    each = 4 * 20 * 4 if warp == "features" else 20 * 6 * 20
    monkeypatch.setattr(sampling, "CHUNK", per_block * each)
    found = module(x)
    expected = slow_outputs(module, x)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)
    still = drawn_module(warp=warp, moving=False)(x).detach().numpy()
    assert np.abs(still - expected).max() > 0.1  # the warps do something


@pytest.mark.parametrize("warp", WARPS)
def test_gradients_are_those_of_finite_differences(warp):
    module, x = drawn_module("rotation", warp).double(), torch.randn(2, 20, 4).double().requires_grad_()
    parameters = dict(module.named_parameters())

    def outputs(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x,)).sum(1)

    values = [p.detach().requires_grad_() for p in parameters.values()]
    loss = outputs(x, *values).square().sum()
    gradients = torch.autograd.grad(loss, [x, *values])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        steps = [torch.randn(value.shape, generator=generator).double() for value in (x, *values)]
        step = 1e-6

        def moved(sign):
            at = [value + sign * step * by for value, by in zip((x, *values), steps, strict=True)]
            return float(outputs(*at).square().sum())

        slope = (moved(1) - moved(-1)) / (2 * step)
    expected = sum(float((gradient * by).sum()) for gradient, by in zip(gradients, steps, strict=True))
    assert slope == pytest.approx(expected, rel=1e-5)


def test_a_bias_of_one_cell_shifts_the_masks():
    module = drawn_module("translation", "units", moving=False)
    with torch.no_grad():
        module.of_units[-1].bias.view(3, 2)[:] = torch.tensor([2 / 5, 0.0])
    x = torch.randn(6, 20, 4)
    masks = module.masks().detach().view(3, *GRID)
    shifted = torch.cat([masks[..., 1:], torch.zeros(3, 4, 1)], 2).flatten(1)
    expected = torch.einsum("ntd,vt,vd->nv", x, shifted, module.weight.detach()) + module.bias.detach()
    torch.testing.assert_close(module(x).detach(), expected, atol=1e-5, rtol=1e-5)


def turned_world(n=1000, grid=(7, 7), d=6, v=6, noise=0.3, seed=0):
    """Units whose fields turn about the centre of the image by an angle that one feature shows everywhere."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, grid[0] * grid[1], d))
    angles = rng.uniform(-1.2, 1.2, n)
    X[..., 0] = angles[:, None]
    centres = cell_centres(grid).numpy()
    start = rng.uniform(-np.pi, np.pi, v)
    fields = 0.6 * np.stack([np.cos(start), np.sin(start)], 1)
    weights = rng.standard_normal((v, d))
    weights[:, 0] = 0
    cos, sin = np.cos(angles), np.sin(angles)
    turn = np.stack([cos, -sin, sin, cos], 1).reshape(n, 2, 2)
    read = np.einsum("tj,nij->nti", centres, turn)
    masks = np.exp(-((read[:, None] - fields[:, None]) ** 2).sum(3) / (2 * 0.2**2))
    clean = np.einsum("nvt,ntd,vd->nv", masks, X, weights)
    clean /= clean.std(0)
    return X.astype("f4"), clean + noise * rng.standard_normal(clean.shape), clean, angles


def test_a_planted_rotation_is_found_and_a_static_mask_misses_it():
    X, Y, clean, angles = turned_world()
    encoder = SemanticTransformerReadout(
        transformation="rotation", warp="units", grid=(7, 7), lr=0.01, epochs=40, patience=40
    ).fit(X[:800], Y[:800])
    static = FactorizedReadout(grid=(7, 7), lr=0.03, epochs=40).fit(X[:800], Y[:800])
    assert encoder.unit_scores(X[800:], clean[800:]).min() > 0.9
    assert static.unit_scores(X[800:], clean[800:]).mean() < 0.75
    module = encoder.module_
    responder = encoder.torch_module()
    standard = (torch.from_numpy(X[800:]) - responder.mean) * responder.inverse
    with torch.no_grad():
        found = module.of_units(module.localiser(standard).flatten(1)).numpy()
    for unit in range(6):
        slope = np.polyfit(angles[800:], found[:, unit], 1)[0]
        assert np.corrcoef(found[:, unit], angles[800:])[0, 1] > 0.97
        assert slope == pytest.approx(1, abs=0.15)
    assert (encoder.masks_ >= 0).all() and encoder.masks_.shape == (6, 7, 7)
    np.testing.assert_allclose(np.linalg.norm(encoder.masks_.reshape(6, -1), axis=1), 1, atol=1e-4)


def test_masks_are_held_at_zero():
    module = drawn_module()
    with torch.no_grad():
        module.place[0, :5] = -1.0
        module.constrain()
    assert (module.place >= 0).all() and (module.place[0, :5] == 0).all()


def test_networks_take_a_tenth_of_the_learning_rate_and_every_parameter_is_trained_once():
    module = drawn_module()
    groups = module.parameter_groups(0.02)
    names = {id(p): name for name, p in module.named_parameters()}
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(names.values())
    for group in groups:
        networks = {names[id(p)].split(".")[0] for p in group["params"]} & {"localiser", "of_units", "of_features"}
        assert group.get("lr", 0.02) == (pytest.approx(0.002) if networks else 0.02)
        assert group["weight_decay"] == (0.0 if any(p is module.place for p in group["params"]) else 1e-4)


def test_a_seed_is_an_outcome_and_units_are_left_out():
    X, Y, _, _ = turned_world(n=120)
    Y[:, 2] = np.nan
    with pytest.warns(UserWarning, match="1 of 6 units"):
        one = SemanticTransformerReadout(grid=(7, 7), lr=0.01, epochs=2).fit(X, Y)
        same, other = clone(one).fit(X, Y), clone(one).set_params(seed=1).fit(X, Y)
    np.testing.assert_array_equal(one.predict(X), same.predict(X))
    kept = [0, 1, 3, 4, 5]
    assert not np.array_equal(one.predict(X)[:, kept], other.predict(X)[:, kept])
    assert np.isnan(one.masks_[2]).all() and np.isnan(one.predict(X)[:, 2]).all()
    assert np.isfinite(one.masks_[kept]).all() and np.isfinite(one.predict(X)[:, kept]).all()


def test_training_goes_on_from_a_checkpoint_at_the_same_bits(tmp_path):
    X, Y, _, _ = turned_world(n=120)
    whole = SemanticTransformerReadout(grid=(7, 7), lr=0.01, epochs=4).fit(X, Y)
    first = clone(whole).set_params(epochs=2, checkpoint=tmp_path / "fit.safetensors").fit(X, Y)
    rest = clone(first).set_params(epochs=4).fit(X, Y)
    assert rest.history_.epoch.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(rest.predict(X), whole.predict(X))


def test_half_precision_keeps_r():
    X, Y, clean, _ = turned_world(n=600)
    scores = [
        SemanticTransformerReadout(grid=(7, 7), lr=0.01, epochs=8, precision=precision)
        .fit(X[:400], Y[:400])
        .unit_scores(X[400:], clean[400:])
        .mean()
        for precision in ("float32", "bfloat16")
    ]
    assert abs(scores[0] - scores[1]) < 0.01


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"transformation": "rotations"}, "rotation"),
        ({"warp": "unit"}, "units"),
        ({"channels": 0}, "channels=0: expected a whole number"),
        ({"hidden": 2.5}, "hidden=2.5: expected a whole number"),
        ({"grid": None}, "a warp needs places"),
    ],
)
def test_what_cannot_be_is_refused(parameters, words):
    X, Y, _, _ = turned_world(n=40)
    with pytest.raises(ValueError, match=words):
        SemanticTransformerReadout(**({"grid": (7, 7)} | parameters)).fit(X, Y)
