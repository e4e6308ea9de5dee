import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders.routing import pretraining
from neuralign.encoders.routing.in_context import InContextEncoder
from neuralign.encoders.routing.pretraining import Draws, Stage, learning_rate

TINY = {"width": 16, "layers": 2, "registers": 2, "steps": (6, 6, 6), "units_per_step": 8, "verbose": False}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@parametrize_with_checks(
    [InContextEncoder(**TINY | {"width": 8, "layers": 1, "steps": (2, 2, 2)})],
    expected_failed_checks=lambda encoder: {
        "check_regressors_train": "a network of six steps predicts nothing",
    },
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def drawn(v, f=5, n=60, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, f)) * np.linspace(0.5, 3, f) + 4
    return X, X @ rng.standard_normal((f, v)) + rng.standard_normal((n, v)) + 7


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    X, Y = drawn(30)
    return InContextEncoder(**TINY).pretrain(X, Y)


def test_the_order_of_a_context_does_not_matter(trained):
    X, Y = drawn(4, n=20, seed=1)
    order = np.random.default_rng(0).permutation(20)
    a, b = trained.condition(X, Y), trained.condition(X[order], Y[order])
    size = np.abs(a.predicted_weights_).max()
    np.testing.assert_allclose(a.predicted_weights_, b.predicted_weights_, atol=1e-5 * size)
    other = trained.condition(X, Y[order])  # but which response belongs to which stimulus does
    assert np.abs(a.predicted_weights_ - other.predicted_weights_).max() > 1e-3 * size


def test_scale_and_offset_of_a_unit_do_not_matter(trained):
    X, Y = drawn(4, n=20, seed=1)
    size, shift = np.array([1e-4, 1, 30, 1e4]), np.array([0, -5e3, 2, 1e6])
    a, b = trained.condition(X, Y).predict(X), trained.condition(X, Y * size + shift).predict(X)
    np.testing.assert_allclose((b - shift) / size, a, atol=1e-4)


def test_units_do_not_see_each_other(trained, monkeypatch):
    X, Y = drawn(6, n=20, seed=2)
    together = trained.condition(X, Y).coef_
    np.testing.assert_allclose(trained.condition(X, Y[:, 2]).coef_, together[:, 2], rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("neuralign.encoders.routing.in_context.BLOCK", 1)  # one unit at a time
    np.testing.assert_allclose(trained.condition(X, Y).coef_, together, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [2, 7, 400])
def test_contexts_of_other_lengths_than_those_of_training_are_accepted(trained, n):
    X, Y = drawn(3, n=n, seed=3)
    assert np.isfinite(trained.condition(X, Y).predict(X)).all()


def plain_weights(module, x, y, scale_length=True):
    """The network of one unit, step by step in numpy."""
    p = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def norm(name, h):
        h = h - h.mean(-1, keepdims=True)
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(name, h):
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def residual(name, h):
        def leaky(a):
            return np.where(a > 0, a, 0.1 * a)

        inner = linear(f"{name}.into", leaky(norm(f"{name}.norm_in", h)))
        return linear(f"{name}.bypass", h) + linear(f"{name}.out", leaky(norm(f"{name}.norm_hidden", inner)))

    tokens = np.vstack([p["registers"], residual("embed", np.column_stack([x, y]))])
    length, width = tokens.shape
    for i, block in enumerate(module.blocks):
        h = norm(f"blocks.{i}.norm_attention", tokens)
        q = linear(f"blocks.{i}.query", h * np.log(length) if scale_length else h)
        k, v = np.split(linear(f"blocks.{i}.key_value", h), 2, axis=1)
        out, e = np.empty_like(h), width // block.heads
        for head in range(block.heads):
            own = slice(head * e, (head + 1) * e)
            logits = q[:, own] @ k[:, own].T / np.sqrt(e)
            a = np.exp(logits - logits.max(1, keepdims=True))
            out[:, own] = a / a.sum(1, keepdims=True) @ v[:, own]
        tokens = tokens + linear(f"blocks.{i}.project", out)
        gate, value = np.split(linear(f"blocks.{i}.gate", norm(f"blocks.{i}.norm_feed", tokens)), 2, axis=1)
        tokens = tokens + linear(f"blocks.{i}.feed", gate / (1 + np.exp(-gate)) * value)
    return residual("write", tokens[0])


@pytest.mark.parametrize("scale_length", [True, False])
def test_the_network_is_the_published_one(scale_length):
    X, Y = drawn(10)
    encoder = InContextEncoder(**TINY | {"scale_length": scale_length}).pretrain(X, Y)
    X, Y = drawn(2, n=9, seed=4)
    found = encoder.condition(X, Y)
    x = (X - encoder.feature_mean_) @ encoder._to_axes
    for i in range(2):
        y = (Y[:, i] - Y[:, i].mean()) / Y[:, i].std(ddof=1)
        weights = plain_weights(encoder.module_.cpu(), x, y, scale_length) * Y[:, i].std(ddof=1)
        predicted = x @ weights[:-1] + weights[-1] + Y[:, i].mean()
        np.testing.assert_allclose(found.predict(X)[:, i], predicted, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found.predicted_weights_[:-1, i], encoder._to_axes @ weights[:-1], atol=1e-4)


def test_the_published_size():
    """97.2 M parameters at the sizes of the paper for CLIP."""
    from neuralign.encoders.routing.hypernetwork import Hypernetwork

    with torch.device("meta"):
        module = Hypernetwork(512, 560, 20, 10, 4, 2048)
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(97.2e6, rel=0.01)


def test_weights_belong_to_features_as_they_are(trained):
    X, Y = drawn(3, n=20, seed=5)
    found = trained.condition(X, Y)
    assert found.predicted_weights_.shape == (6, 3)
    by_hand = X @ found.predicted_weights_[:-1] + found.predicted_weights_[-1]
    np.testing.assert_allclose(found.predict(X), by_hand, rtol=1e-10)


def test_leading_axes_of_many_features():
    rng = np.random.default_rng(6)
    latent = rng.standard_normal((60, 4))
    X = latent @ rng.standard_normal((4, 300)) + 1
    encoder = InContextEncoder(**TINY, max_dimension=4).fit(X, latent)
    assert encoder.axes_.shape == (300, 4)
    assert encoder.predicted_weights_.shape == (301, 4)
    x = (X - encoder.feature_mean_) @ encoder._to_axes
    np.testing.assert_allclose((x**2).mean(), 1)


# Pretraining


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    X, Y = drawn(12)
    how = TINY | {"dropout": 0.2}
    a, b, c = (InContextEncoder(**how, seed=seed).fit(X, Y) for seed in (0, 0, 1))
    assert np.array_equal(a.coef_, b.coef_)
    assert not np.array_equal(a.coef_, c.coef_)
    assert a.history_["loss"].tolist() == b.history_["loss"].tolist()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_interrupted_pretraining_ends_at_the_same_bits(tmp_path, monkeypatch, after):
    monkeypatch.setattr(pretraining, "CHUNK", 4)
    X, Y = drawn(12)
    how = TINY | {"dropout": 0.2}
    whole = InContextEncoder(**how).fit(X, Y)
    assert whole.history_["stage"].tolist() == ["synthetic"] * 2 + ["variable"] * 2 + ["real"] * 2
    assert whole.history_["step"].tolist() == [4, 6] * 3
    chunk, calls = pretraining.Pretrainer._chunk, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) > after:
            raise Interrupted
        return chunk(self, *arguments)

    monkeypatch.setattr(pretraining.Pretrainer, "_chunk", interrupted)
    resumed = InContextEncoder(**how, checkpoint=tmp_path / "a.safetensors")
    with pytest.raises(Interrupted):
        resumed.fit(X, Y)
    torch.rand(3)  # nothing outside matters
    monkeypatch.setattr(pretraining.Pretrainer, "_chunk", chunk)
    resumed = clone(resumed).fit(X, Y)
    assert np.array_equal(resumed.coef_, whole.coef_)
    assert resumed.history_["loss"].tolist() == whole.history_["loss"].tolist()
    # A finished run is only read.
    monkeypatch.setattr(pretraining.Pretrainer, "_chunk", interrupted)
    assert np.array_equal(clone(resumed).fit(X, Y).coef_, whole.coef_)


def test_a_checkpoint_of_other_units_is_refused(tmp_path):
    X, Y = drawn(12)
    encoder = InContextEncoder(**TINY, checkpoint=tmp_path / "a.safetensors").fit(X, Y)
    with pytest.raises(ValueError, match="is of another fit: values of Y is"):
        clone(encoder).fit(X, Y + 1)
    with pytest.raises(ValueError, match="is of another fit: lr is 0.5, there it was 0.001"):
        clone(encoder).set_params(lr=0.5).fit(X, Y)


def test_diverging_training_stops_with_the_last_good_weights(monkeypatch):
    monkeypatch.setattr(pretraining, "CHUNK", 6)
    X, Y = drawn(12)
    good = InContextEncoder(**TINY).pretrain(X, Y)
    step = Draws.step

    def broken(self, stage, rng):
        x, context, x_query, target = step(self, stage, rng)
        return x, context, x_query, target * (np.inf if stage.name == "real" else 1)

    monkeypatch.setattr(Draws, "step", broken)
    with pytest.warns(UserWarning, match="diverged in stage 'real' between steps 0 and 6: stopped with the weights of"):
        bad = InContextEncoder(**TINY).pretrain(X, Y)
    assert bad.history_["loss"].tolist() == good.history_["loss"].tolist()[:2]
    assert np.isfinite(bad.condition(X[:9], Y[:9]).coef_).all()
    with pytest.raises(ValueError, match="before anything was learned; lower lr"):
        InContextEncoder(**TINY | {"stages": ("real",), "steps": (6,)}).pretrain(X, Y)


def test_drawn_units_have_the_ceiling_that_is_asked_for():
    rng = np.random.default_rng(7)
    X = torch.from_numpy(rng.standard_normal((3000, 5))).float()
    draws = Draws((10, 2000), 40, 1000, (0.36, 0.36), None)
    x, context, x_query, target = draws.step(Stage("synthetic", X, None, None), rng)
    assert context.shape == (40, 2000)
    assert target.shape == (40, 1000)
    weights = torch.linalg.lstsq(x, context.T).solution  # the signal, as the context shows it
    explained = 1 - (context.T - x @ weights).var(0) / context.T.var(0)
    assert abs(float(explained.mean()) - 0.36) < 0.02
    # Targets are the signal alone, on the scale of the context.
    np.testing.assert_allclose(target.var(1), 0.36, atol=0.06)
    assert float((target.T - x_query @ weights).square().mean()) < 0.01
    # No query is in the context, and contexts of the second stage vary.
    assert not (x[:, None] == x_query[None, :50]).all(-1).any()
    lengths = [len(draws.step(Stage("variable", X, None, None), np.random.default_rng(i))[0]) for i in range(40)]
    assert min(lengths) < 200 and max(lengths) > 1800


def test_a_population_gives_weights_for_features_as_they_are():
    X, _ = drawn(1, n=200)
    seen = []

    def population(v, rng):
        seen.append(v)
        weights = np.zeros((5, v))
        weights[3] = 2.0
        return weights

    encoder = InContextEncoder(**TINY).pretrain(X, population=population)
    assert seen == [8] * 12  # two stages, for there are no real units
    assert set(encoder.history_["stage"]) == {"synthetic", "variable"}
    bank = torch.from_numpy(X - X.mean(0))
    stage = Stage("synthetic", bank.float(), X - X.mean(0), None)
    draws = Draws((10, 100), 8, 100, (1.0, 1.0), population)
    x, context, _, _ = draws.step(stage, np.random.default_rng(0))
    np.testing.assert_allclose(np.corrcoef(x[:, 3], context[2])[0, 1], 1, atol=1e-6)


def test_pretraining_then_fit_only_writes_weights():
    X, Y = drawn(12)
    encoder = InContextEncoder(**TINY).pretrain(X[:, :], Y[:, :8])
    before = {name: value.clone() for name, value in encoder.module_.state_dict().items()}
    new = encoder.condition(X[:9], Y[:9, 8:])
    assert not hasattr(encoder, "coef_")
    encoder.fit(X[:9], Y[:9, 8:])
    np.testing.assert_array_equal(encoder.coef_, new.coef_)
    assert all(torch.equal(before[name], value) for name, value in encoder.module_.state_dict().items())


def test_learning_rates_rise_and_fall():
    rates = [learning_rate(step, 1000, 2.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0, rel=0.03)
    assert rates[-1] == pytest.approx(0.02, rel=0.01)
    assert (np.diff(rates[100:]) < 0).all()


# Missing responses and bad input


def test_units_that_cannot_be_fitted_are_counted_once_and_change_nothing(trained):
    X, Y = drawn(6, n=20, seed=8)
    holed = Y.copy()
    holed[:, 1], holed[1:, 3], holed[12:, 4] = 5.0, np.nan, np.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = trained.condition(X, holed)
    told = [str(w.message) for w in caught]
    assert len(told) == 2
    assert "1 of 6 units have fewer than 2 responses" in told[0]
    assert "1 of 6 units are constant" in told[1]
    predicted = found.predict(X)
    assert np.isnan(predicted[:, 3]).all()
    np.testing.assert_array_equal(predicted[:, 1], 5.0)
    whole = trained.condition(X, Y).predict(X)
    np.testing.assert_allclose(predicted[:, [0, 2, 5]], whole[:, [0, 2, 5]], rtol=1e-5)
    np.testing.assert_allclose(predicted[:, 4], trained.condition(X[:12], Y[:12, 4]).predict(X), rtol=1e-5)


def test_units_with_holes_are_left_out_of_pretraining():
    X, Y = drawn(12)
    holed = Y.copy()
    holed[3, 5] = np.nan
    with pytest.warns(UserWarning, match="1 of 12 units hold NaN and are left out of pretraining"):
        a = InContextEncoder(**TINY).pretrain(X, holed)
    b = InContextEncoder(**TINY).pretrain(X, np.delete(Y, 5, axis=1))
    assert all(torch.equal(v, b.module_.state_dict()[name]) for name, v in a.module_.state_dict().items())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"heads": 3}, "heads=3 do not divide width=16; take one of 1, 2, 4, 8, 16"),
        ({"stages": ("synthetic", "reel", "real")}, "stages='reel' is unknown; did you mean 'real'"),
        ({"steps": (5, 5)}, "expected an int of at least 1 for each stage"),
        ({"context": (1, 50)}, "context=.1, 50.: expected .shortest, longest."),
        ({"ceiling": (0.5, 2)}, "ceiling=.0.5, 2.: expected two shares of variance"),
        ({"precision": "half"}, "precision='half' is unknown"),
        ({"layers": 0}, "layers=0: expected an int of at least 1"),
        ({"checkpoint": "a.pt"}, "expected a path that ends in .safetensors"),
    ],
)
def test_parameters_out_of_range(parameters, message):
    X, Y = drawn(4)
    with pytest.raises(ValueError, match=message):
        InContextEncoder(**TINY | parameters).fit(X, Y)


def test_bad_input(trained):
    X, Y = drawn(4)
    with pytest.raises(ValueError, match="minimum of 8 is required"):
        InContextEncoder(**TINY).fit(X[:1], Y[:1])
    with pytest.raises(ValueError, match="flatten the tokens first"):
        InContextEncoder(**TINY).fit(np.zeros((20, 4, 4)), Y[:20])
    with pytest.raises(ValueError, match="stages=.'real'. leave nothing to train on; pass Y"):
        InContextEncoder(**TINY | {"stages": ["real"], "steps": [5]}).pretrain(X)
    with pytest.raises(ValueError, match=r"population gives weights of shape \(8, 5\); expected .* \(5, 8\)"):
        InContextEncoder(**TINY).pretrain(X, population=lambda v, rng: rng.standard_normal((v, 5)))
    with pytest.raises(ValueError, match="population=int is not callable"):
        InContextEncoder(**TINY).pretrain(X, population=3)
    with pytest.raises(ValueError, match="features"):
        trained.condition(X[:, :3], Y)


def test_bfloat16_writes_nearly_the_same_weights(trained):
    X, Y = drawn(10, n=40, seed=9)
    full = trained.condition(X, Y)
    half = copy.copy(trained).set_params(precision="bfloat16").condition(X, Y)
    assert not np.array_equal(half.coef_, full.coef_)
    assert np.corrcoef(half.coef_.ravel(), full.coef_.ravel())[0, 1] > 0.999
