import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.spatial import sampling
from neuralign.encoders.spatial.factorized import MASKS, FactorizedModule, FactorizedReadout

GRID = (5, 4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@parametrize_with_checks(
    [FactorizedReadout(epochs=3, lr=0.03), FactorizedReadout(mask="free", l1=1e-3, refit=False, epochs=2, lr=0.03)],
    expected_failed_checks=lambda estimator: {
        "check_regressor_multioutput": "predictions are float32, as those of all encoders that torch trains"
    },
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def field_world(n=900, v=6, d=10, grid=GRID, noise=0.5, seed=0):
    """Units that read one weighted sum of features through a Gaussian field; the last 300 stimuli are for testing."""
    rng = np.random.default_rng(seed)
    h, w = grid
    X = rng.standard_normal((n, h * w, d)).astype("f4") * rng.uniform(0.5, 3, d).astype("f4") + 10
    y, x = np.mgrid[:h, :w]
    centres = np.stack([rng.uniform(0.5, h - 1.5, v), rng.uniform(0.5, w - 1.5, v)], 1)
    masks = np.exp(-((y.ravel() - centres[:, :1]) ** 2 + (x.ravel() - centres[:, 1:]) ** 2) / 2)
    masks /= masks.sum(1, keepdims=True)
    clean = np.einsum("ntd,vt,vd->nv", X - 10, masks, rng.standard_normal((v, d)))
    clean /= clean.std(0)
    Y = 3 * (clean + noise * rng.standard_normal(clean.shape)) + 7
    return X, Y, clean, masks


def quick(**parameters):
    return FactorizedReadout(**({"grid": GRID, "lr": 0.03, "epochs": 60} | parameters))


def drawn_module(mask, l1=0.0, v=3, t=6, d=4):
    torch.manual_seed(0)
    return FactorizedModule(torch.randn(v, d), torch.randn(v, t), torch.randn(v), mask, l1)


def slow_masks(module):
    """Masks by their definitions, in numpy."""
    s = module.place.detach().numpy().astype(np.float64)
    if module.mask == "softmax":
        s = np.exp(s)
        return s / s.sum(1, keepdims=True)
    return s / (np.sqrt((s**2).sum(1, keepdims=True)) + 1e-6) if module.mask == "l2" else s


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("per_block", [1, 2, 3])
def test_outputs_are_sums_over_places_and_features(monkeypatch, mask, per_block):
    module = drawn_module(mask).eval()
    monkeypatch.setattr(sampling, "CHUNK", per_block * 4 * 24)
    x = torch.randn(5, 6, 4)
    found = module(x).detach().numpy()
    s, w, b = slow_masks(module), module.weight.detach().numpy(), module.bias.detach().numpy()
    for row in range(5):
        for unit in range(3):
            total = float(b[unit])
            for place in range(6):
                total += s[unit, place] * float(np.dot(w[unit], x[row, place].numpy()))
            assert found[row, unit] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_training_starts_at_the_mean_token(mask):
    weight, x = torch.randn(3, 4), torch.randn(5, 6, 4)
    module = FactorizedModule(weight, torch.zeros(3, 6), torch.ones(3), mask)
    torch.testing.assert_close(module(x).detach(), x.mean(1) @ weight.T + 1, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
def test_the_penalty_of_the_outer_product_comes_with_the_gradient_of_any_loss(mask):
    x, y = torch.randn(5, 6, 4), torch.randn(5, 3)
    charged, free = drawn_module(mask, l1=0.3).train(), drawn_module(mask).train()
    (charged(x) - y).square().mean().backward()
    masks = free.masks()
    penalty = sum(masks[unit].abs().sum() * free.weight[unit].abs().sum() for unit in range(3))
    ((free(x) - y).square().mean() + 0.3 * penalty).backward()
    for (name, one), other in zip(charged.named_parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    assert torch.equal(charged(x), drawn_module(mask)(x))  # outputs are untouched


def test_a_penalty_makes_weights_sparse():
    X, Y, clean, masks = field_world()
    outside = masks.reshape(6, *GRID) < 0.05 * masks.max(1)[:, None, None]
    noise = []
    for l1 in (0.0, 5e-3):
        encoder = quick(mask="free", refit=False, l1=l1, lr=0.02, epochs=50, patience=50).fit(X[:600], Y[:600])
        size = np.abs(encoder.masks_) / np.abs(encoder.masks_).max((1, 2), keepdims=True)
        noise.append(size[outside].mean())
        assert np.nanmean(encoder.unit_scores(X[600:], clean[600:])) > 0.9
    assert noise[1] < 0.5 * noise[0]


@pytest.mark.parametrize("mask", MASKS)
def test_planted_masks_are_recovered(mask):
    X, Y, clean, masks = field_world()
    encoder = quick(mask=mask, lr=None if mask == "softmax" else 0.03).fit(X[:600], Y[:600])
    assert set(encoder.lr_scores_) == ({0.01, 0.03, 0.1} if mask == "softmax" else {0.03})
    assert encoder.unit_scores(X[600:], clean[600:]).min() > 0.95
    assert encoder.masks_.shape == (6, *GRID)
    found = encoder.masks_.reshape(6, -1)
    for unit in range(6):
        sign = np.sign(found[unit].sum())
        assert np.corrcoef(sign * found[unit], masks[unit])[0, 1] > 0.9
    if mask == "softmax":
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        assert (found > 0).all()
    if mask == "l2":
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)


def test_the_refit_is_ridge_of_each_unit_on_its_masked_features():
    X, Y, _, _ = field_world()
    rows = np.random.default_rng(3).permutation(600)
    train, rest = np.sort(rows[:480]), np.sort(rows[480:])
    encoder = quick(validation=(train, rest)).fit(X[:600], Y[:600])
    assert (encoder.head_ == "ridge").all()
    predicted = encoder.predict(X[600:])
    mean, std = X[train].mean((0, 1), dtype=np.float64), X[train].std((0, 1), dtype=np.float64)
    for unit in range(6):
        features = np.einsum("ntd,t->nd", (X - mean) / std, encoder.masks_[unit].ravel())
        scale = features[:600].std(0)
        ridge = Ridge(alpha=encoder.alpha_[unit]).fit(features[:600] / scale, Y[:600, unit] / Y[train, unit].std())
        expected = ridge.predict(features[600:] / scale) * Y[train, unit].std()
        np.testing.assert_allclose(predicted[:, unit], expected, atol=2e-4)


def test_units_keep_trained_weights_where_they_predict_better(monkeypatch):
    from neuralign.encoders.spatial import factorized

    found = {}
    solve = factorized.masked_ridge

    def worse_for_two(masks, setup):
        ridge = solve(masks, setup)
        ridge.r[:2], ridge.weights[:2], ridge.r[5] = -0.5, 1e6, np.nan
        found["r"] = ridge.r.numpy().copy()
        return ridge

    X, Y, _, _ = field_world()
    alone = quick(refit=False).fit(X[:600], Y[:600])
    monkeypatch.setattr(factorized, "masked_ridge", worse_for_two)
    encoder = quick().fit(X[:600], Y[:600])
    assert encoder.head_.tolist() == ["sgd"] * 2 + ["ridge"] * 3 + ["sgd"]
    kept = [0, 1, 5]
    np.testing.assert_array_equal(encoder.predict(X[600:])[:, kept], alone.predict(X[600:])[:, kept])
    np.testing.assert_array_equal(encoder.validation_r_[kept], alone.validation_r_[kept])
    np.testing.assert_array_equal(encoder.validation_r_[2:5], found["r"][2:5])
    assert np.isnan(encoder.alpha_[kept]).all() and (encoder.alpha_[2:5] > 0).all()


@pytest.mark.parametrize("mask", MASKS)
def test_one_token_is_the_linear_model(mask):
    X, Y, _, _ = field_world()
    X = X[:, 7]
    rows = np.arange(600)
    encoder = quick(mask=mask, grid=None, validation=(rows[:480], rows[480:]), epochs=1).fit(X[:600], Y[:600])
    assert (encoder.head_ == "ridge").all()
    scale = X[:600].std(0)
    for unit in range(6):
        expected = Ridge(alpha=encoder.alpha_[unit]).fit(X[:600] / scale, Y[:600, unit]).predict(X[600:] / scale)
        np.testing.assert_allclose(encoder.predict(X[600:])[:, unit], expected, atol=1e-3)


def test_the_order_of_tokens_does_not_matter():
    X, Y, _, _ = field_world(n=400)
    order = np.random.default_rng(1).permutation(20)
    one = quick(epochs=30).fit(X[:300], Y[:300]).predict(X[300:])
    other = quick(epochs=30, grid=None).fit(X[:300, order], Y[:300]).predict(X[300:, order])
    # masks start at noise that is drawn by place, so that training ends near the same point and not at its bits
    assert np.min([np.corrcoef(one[:, unit], other[:, unit])[0, 1] for unit in range(6)]) > 0.99


def test_flattened_tokens_are_tokens_and_a_seed_is_an_outcome():
    X, Y, _, _ = field_world(n=300)
    one = quick(epochs=5).fit(X, Y)
    same = clone(one).fit(X.reshape(300, -1), Y)
    np.testing.assert_array_equal(one.predict(X), same.predict(X.reshape(300, -1)))
    other = clone(one).set_params(seed=1).fit(X, Y)
    assert not np.array_equal(one.predict(X), other.predict(X))


def test_training_goes_on_from_a_checkpoint_at_the_same_bits(tmp_path):
    X, Y, _, _ = field_world(n=300)
    whole = quick(epochs=6).fit(X, Y)
    first = quick(epochs=3, checkpoint=tmp_path / "fit.safetensors").fit(X, Y)
    rest = clone(first).set_params(epochs=6).fit(X, Y)
    assert rest.history_.epoch.tolist() == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(rest.predict(X), whole.predict(X))
    np.testing.assert_array_equal(rest.masks_, whole.masks_)


def test_missing_responses_and_units():
    X, Y, clean, _ = field_world()
    Y = Y.copy()
    Y[np.random.default_rng(0).random(900) < 0.3, 0] = np.nan
    Y[:, 2] = np.nan
    Y[:, 4] = 5.0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        encoder = quick().fit(X[:600], Y[:600])
    assert len(told) == 1 and "1 of 6 units" in str(told[0].message)
    predicted = encoder.predict(X[600:])
    assert np.isnan(predicted[:, 2]).all() and (predicted[:, 4] == 5).all()
    scores = encoder.unit_scores(X[600:], clean[600:])
    assert (scores[[0, 1, 3, 5]] > 0.95).all()
    assert np.isnan(encoder.masks_[[2, 4]]).all() and np.isfinite(encoder.masks_[[0, 1, 3, 5]]).all()
    assert encoder.head_[[2, 4]].tolist() == ["", ""]
    assert np.isnan(encoder.feature_weights_[2]).all() and encoder.feature_weights_.shape == (6, 10)


def test_counts_are_fitted_by_their_likelihood():
    X, _, clean, _ = field_world(n=1200)
    counts = np.random.default_rng(0).poisson(np.exp(0.7 * clean + 0.5))
    encoder = quick(loss="poisson").fit(X[:900], counts[:900].astype(float))
    rates = encoder.predict(X[900:])
    assert (rates > 0).all() and (encoder.head_ == "sgd").all()
    assert np.mean([np.corrcoef(rates[:, unit], np.exp(0.7 * clean[900:, unit]))[0, 1] for unit in range(6)]) > 0.85
    np.testing.assert_allclose(rates.mean(0), counts[900:].mean(0), rtol=0.25)


def test_the_correlation_loss_gives_responses_their_scale():
    X, Y, _, _ = field_world()
    for refit in (False, True):
        encoder = quick(loss="correlation", refit=refit, epochs=30).fit(X[:600], Y[:600])
        assert encoder.score(X[600:], Y[600:]) > 0.6  # of .8


def test_half_precision_keeps_r():
    X, Y, clean, _ = field_world()
    full, half = (quick(precision=precision).fit(X[:600], Y[:600]) for precision in ("float32", "bfloat16"))
    difference = full.unit_scores(X[600:], clean[600:]) - half.unit_scores(X[600:], clean[600:])
    assert np.abs(difference).max() < 5e-3 and abs(difference.mean()) < 1e-3


def test_gradients_by_tokens():
    X, Y, _, _ = field_world(n=300)
    encoder = quick(epochs=5).fit(X, Y)
    tokens = torch.from_numpy(X[:2]).requires_grad_()
    encoder.torch_module()(tokens)[:, 1].sum().backward()
    std = X[np.sort(np.arange(300))].std((0, 1))  # near that of the training rows
    expected = np.outer(encoder.masks_[1].ravel(), encoder.feature_weights_[1]) / std * Y[:, 1].std()
    np.testing.assert_allclose(tokens.grad[0].numpy(), expected, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"mask": "softmx"}, "softmax"),
        ({"l1": -1.0}, "l1=-1.0: expected a number"),
        ({"l1": "much"}, "l1='much': expected a number"),
        ({"lr": 0.0}, "lr=0.0: expected a number above zero"),
    ],
)
def test_what_cannot_be_is_refused(parameters, words):
    X, Y, _, _ = field_world(n=50)
    with pytest.raises(ValueError, match=words):
        quick(**parameters).fit(X, Y)
