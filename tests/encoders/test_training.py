"""The trainer, and the order of a fit that every readout trained by gradients shares."""

import importlib.util
import pickle
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import poisson
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from neuralign.encoders.spatial.batches import Feed, epoch_order, row_batches
from neuralign.encoders.spatial.store import TokenStore
from neuralign.encoders.spatial.tokens import checked_tokens
from neuralign.encoders.spatial.training import Training, half_precision, parameter_groups, split_rows

spec = importlib.util.spec_from_file_location("linear_readout", Path(__file__).parent / "linear_readout.py")
linear_readout = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where pickle finds its class
spec.loader.exec_module(linear_readout)
LinearReadout = linear_readout.LinearReadout


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world(n=400, offset=0.0, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 6, 4)).astype(np.float32)
    B = np.random.default_rng(99).standard_normal((24, 5)) / 24**0.5
    Y = 3 * (X.reshape(n, -1) @ B + noise * rng.standard_normal((n, 5))) + 7
    return X + np.float32(offset), Y


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@parametrize_with_checks(
    [LinearReadout(lr=1e-2)],
    expected_failed_checks=lambda _: {"check_regressor_multioutput": "predictions are float32, as training is"},
)
def test_conventions_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant units and the like
        check(estimator)


# Rows, batches and splits


def test_batches_hold_every_row_once():
    for n in (3, 10, 11, 12, 13, 24, 25, 26):
        order = epoch_order(np.arange(100, 100 + n), 0, 1)
        batches = row_batches(order, 12)
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(100, 100 + n))
        assert all((np.diff(rows) > 0).all() for rows in batches)
        assert min(map(len, batches)) >= 3
        assert max(map(len, batches)) <= 14


def test_orders_depend_on_seed_and_epoch_alone():
    rows = np.arange(50)
    orders = [tuple(epoch_order(rows, *key)) for key in [(0, 1), (0, 2), (1, 1), (0, 1)]]
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


def test_batches_of_one_size_leave_no_row_out_for_long():
    rows, before = np.arange(10), []
    for epoch in range(1, 6):
        order = epoch_order(rows, 0, epoch, fixed=4)
        batches = row_batches(order, 4, fixed=True)
        assert [len(batch) for batch in batches] == [4, 4]
        assert np.array_equal(np.sort(order), rows)
        assert list(order[: len(before)]) == before  # what was left out comes first
        before = list(order[8:])


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_groups_together(seed):
    groups = np.repeat(np.arange(20), 7)
    train_rows, validation_rows = split_rows(140, 0.1, groups, seed)
    assert not set(groups[train_rows]) & set(groups[validation_rows])
    assert len(validation_rows) == 14
    assert np.array_equal(np.sort(np.r_[train_rows, validation_rows]), np.arange(140))


def test_a_split_of_few_rows_has_three_to_stop_by():
    assert [len(rows) for rows in split_rows(9, 0.1, None, 0)] == [6, 3]
    assert not np.array_equal(split_rows(90, 0.1, None, 0)[1], split_rows(90, 0.1, None, 1)[1])
    given = split_rows(9, (np.arange(5), [8, 6, 5]), None, 0)
    assert [list(rows) for rows in given] == [[0, 1, 2, 3, 4], [5, 6, 8]]


@pytest.mark.parametrize(
    "n, validation, groups, message",
    [
        (1, 0.1, None, r"1 stimulus \(n_samples=1\); expected at least 8"),
        (7, 0.1, None, "7 stimuli"),
        (20, 0, None, "validation=0: expected a share"),
        (20, 1.5, None, "validation=1.5: expected a share"),
        (20, "half", None, "validation='half': expected a share"),
        (20, ([0, 1, 2], [2, 3, 4]), None, "validation has 1 rows in both"),
        (20, ([0, 1, 2], [3, 4]), None, "3 stimuli to train on and 2 to stop by"),
        (20, ([0, 1, 2], [3, 4, 20]), None, "reach from 3 to 20"),
        (20, 0.1, np.zeros(20), "0 stimuli to train on and 20 to stop by from 1 groups that stay together"),
        (20, 0.1, np.zeros(19), r"groups has shape \(19,\)"),
    ],
)
def test_splits_that_leave_nothing_are_refused(n, validation, groups, message):
    with pytest.raises(ValueError, match=message):
        split_rows(n, validation, groups, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_are_standardised_before_they_are_cast(dtype):
    X, _ = world(40, offset=300.0)
    tokens = checked_tokens(X)
    mean, std = (torch.from_numpy(values).float() for values in tokens.moments())
    feed = Feed(tokens, (mean, std), torch.device("cpu"), dtype)
    x = feed(np.array([3, 5, 8]))
    expected = (X[[3, 5, 8]] - mean.numpy()) / std.numpy()
    assert x.dtype == dtype
    np.testing.assert_allclose(x.float().numpy(), expected, atol=1e-4 if dtype == torch.float32 else 2**-8 * 4)


# Training


def test_a_linear_readout_reaches_least_squares():
    X, Y = world(800, offset=50.0)
    Xt, Yt = world(400, offset=50.0, seed=1)
    encoder = LinearReadout(epochs=120).fit(X, Y)
    design, test = (np.c_[np.ones(len(x)), x.reshape(len(x), -1)] for x in (X.astype(float), Xt.astype(float)))
    exact = test @ np.linalg.lstsq(design, Y, rcond=None)[0]
    best = np.array([np.corrcoef(exact[:, v], Yt[:, v])[0, 1] for v in range(5)])
    found = encoder.unit_scores(Xt, Yt)
    np.testing.assert_allclose(found, best, atol=0.02)
    assert encoder.score(Xt, Yt) > 0.9 * np.mean(1 - ((exact - Yt) ** 2).mean(0) / Yt.var(0))
    assert encoder.predict(Xt).dtype == np.float32


def test_the_best_epoch_is_restored():
    X, Y = world(60, noise=3.0)  # which overfits soon
    fits = [LinearReadout(lr=0.03, epochs=e, patience=999, validation=0.3).fit(X, Y) for e in (60, 200)]
    history = fits[1].history_
    assert list(history.columns) == ["epoch", "loss", "validation_r", "seconds"]
    assert list(history.epoch) == list(range(201))
    best = int(history.validation_r.argmax())
    assert best < 60
    assert history.validation_r.iloc[-1] < history.validation_r[best] - 0.02
    assert same(fits[0].module_, fits[1].module_)
    again = LinearReadout(lr=0.03, epochs=best, patience=99, validation=0.3).fit(X, Y)
    assert same(again.module_, fits[1].module_)
    assert np.mean(again.validation_r_) == pytest.approx(history.validation_r[best], abs=1e-12)
    validation_rows = split_rows(60, 0.3, None, 0)[1]
    np.testing.assert_allclose(
        again.unit_scores(X[validation_rows], Y[validation_rows]), again.validation_r_, atol=1e-5
    )


def test_training_stops_after_patience():
    X, Y = world(60, noise=3.0)
    encoder = LinearReadout(lr=0.03, epochs=200, patience=5, validation=0.3).fit(X, Y)
    r = encoder.history_.validation_r.to_numpy()
    best = int(r.argmax())
    assert len(r) == best + 6


def test_same_seed_same_bits_other_seed_other_weights():
    X, Y = world(100)
    fits = [LinearReadout(dropout=0.2, lr=1e-2, epochs=4, seed=seed).fit(X, Y) for seed in (0, 0, 1)]
    assert same(fits[0].module_, fits[1].module_)
    assert not same(fits[0].module_, fits[2].module_)


def test_training_leaves_the_random_numbers_of_torch_alone():
    X, Y = world(50)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    LinearReadout(dropout=0.2, lr=1e-2, epochs=2).fit(X, Y)
    assert torch.equal(torch.rand(3), expected)


def test_the_learning_rate_of_best_validation_wins():
    X, Y = world(200)
    encoder = LinearReadout(lr=[1e-5, 1e-2, 1e-4], epochs=10).fit(X, Y)
    assert encoder.lr_ == 1e-2
    assert list(encoder.lr_scores_) == [1e-5, 1e-2, 1e-4]
    assert max(encoder.lr_scores_, key=encoder.lr_scores_.get) == 1e-2
    assert encoder.lr_scores_[1e-2] == pytest.approx(np.mean(encoder.validation_r_))
    assert same(LinearReadout(lr=1e-2, epochs=10).fit(X, Y).module_, encoder.module_)
    assert set(LinearReadout(epochs=1).fit(X, Y).lr_scores_) == {1e-3, 3e-3, 1e-2}


def test_one_step_is_that_of_adamw_on_clipped_gradients():
    X, Y = world(40)
    rows = (np.arange(30), np.arange(30, 40))
    encoder = LinearReadout(lr=0.1, epochs=1, batch_size=30, weight_decay=0.5, validation=rows)
    encoder.clip = 0.25
    setup = {}

    class Kept(LinearReadout):
        clip = 0.25

        def _build(self, given, lr):
            module = super()._build(given, lr)
            setup["start"], setup["given"] = {k: v.clone() for k, v in module.state_dict().items()}, given
            return module

    fitted = Kept(**encoder.get_params()).fit(X, Y)
    given = setup["given"]
    weight, bias = (setup["start"][name].clone().requires_grad_() for name in ("weight", "bias"))
    mean, std = (values.numpy() for values in given.standard)
    x = torch.from_numpy((X[:30] - mean) / std).flatten(1)
    y = torch.from_numpy((Y[:30] - Y[:30].mean(0)) / Y[:30].std(0)).float()
    loss = (x @ weight + bias - y).square().mean()
    loss.backward()
    norm = torch.sqrt(weight.grad.square().sum() + bias.grad.square().sum())
    assert norm > 0.25
    for parameter, decay in ((weight, 0.5), (bias, 0.0)):  # biases do not decay
        g = parameter.grad * 0.25 / norm
        step = g / (g.abs() + 1e-8)  # the first step of Adam, bias-corrected
        expected = parameter.detach() * (1 - 0.1 * decay) - 0.1 * step
        found = dict(fitted.module_.named_parameters())["weight" if decay else "bias"]
        torch.testing.assert_close(found.detach(), expected, atol=2e-4, rtol=1e-3)
    assert fitted.history_.loss[1] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_modules_name_what_decays():
    module = nn.Linear(3, 2)
    module.decayed = lambda: [module.bias]
    groups = parameter_groups(module, Training(weight_decay=0.3))
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert groups[0]["params"][0] is module.bias
    module.parameter_groups = lambda lr: [{"params": [module.weight], "lr": lr / 10}]
    assert parameter_groups(module, Training(lr=1.0))[0]["lr"] == 0.1


def test_the_learning_rate_is_halved(monkeypatch):
    X, Y = world(40)
    seen = []
    step = torch.optim.AdamW.step

    def spied(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)

    class Halving(LinearReadout):
        halve_after = 2

    Halving(lr=0.08, epochs=5, patience=9).fit(X, Y)
    assert seen == pytest.approx([0.08, 0.08, 0.04, 0.04, 0.02])


def test_constraints_hold_after_every_step():
    class Constrained(LinearReadout):
        def _build(self, setup, lr):
            module = super()._build(setup, lr)
            module.constrain = lambda: module.weight.clamp_(min=0)
            return module

    X, Y = world(60)
    free, held = (cls(lr=1e-2, epochs=3).fit(X, Y).module_.weight for cls in (LinearReadout, Constrained))
    assert (free < 0).any()
    assert (held >= 0).all()
    assert (held > 0).any()


# Missing responses


def test_a_unit_without_responses_changes_no_other():
    X, Y = world(200)
    holed = np.c_[Y[:, :2], np.full(200, np.nan), Y[:, 2:], np.full(200, 4.5)]
    with pytest.warns(UserWarning, match=r"1 of 7 units have fewer than 3 .*; 1 of 7 units are constant") as caught:
        encoder = LinearReadout(lr=1e-2, epochs=5, dropout=0.1).fit(X, holed)
    assert len(caught) == 1
    plain = LinearReadout(lr=1e-2, epochs=5, dropout=0.1).fit(X, Y)
    predicted = encoder.predict(X)
    assert np.array_equal(predicted[:, [0, 1, 3, 4, 5]], plain.predict(X))
    assert np.isnan(predicted[:, 2]).all()
    assert (predicted[:, 6] == 4.5).all()
    assert np.array_equal(np.isnan(encoder.validation_r_), [False, False, True, False, False, False, True])
    assert np.isfinite(encoder.score(X, holed))


def test_missing_entries_are_as_if_they_were_not_there():
    """Copies of stimuli whose responses are missing, which change neither the moments of the tokens nor the loss."""
    X, Y = world(100)
    full = LinearReadout(lr=1e-2, epochs=15, validation=(np.arange(80), np.arange(80, 100))).fit(X, Y)
    rows = np.arange(200)
    parts = (rows[rows % 100 < 80], rows[rows % 100 >= 80])
    holed = LinearReadout(lr=1e-2, epochs=15, batch_size=200, validation=parts)
    holed.fit(np.r_[X, X], np.r_[Y, np.full_like(Y, np.nan)])
    np.testing.assert_allclose(holed.history_.loss[1:], full.history_.loss[1:], rtol=1e-4)
    np.testing.assert_allclose(holed.predict(X), full.predict(X), atol=1e-2 * Y.std())
    np.testing.assert_allclose(holed.validation_r_, full.validation_r_, atol=1e-4)


def test_scattered_holes_cost_little():
    X, Y = world(600)
    Xt, Yt = world(300, seed=1)
    holed = np.where(np.random.default_rng(2).random(Y.shape) < 0.3, np.nan, Y)
    full, some = (LinearReadout(epochs=60).fit(X, responses).unit_scores(Xt, Yt).mean() for responses in (Y, holed))
    assert some > full - 0.03


def test_no_responses_at_all_are_refused():
    X, Y = world(50)
    with pytest.raises(ValueError, match=r"every unit of Y \(shape \(50, 5\)\) has fewer than 3 known"):
        LinearReadout().fit(X, np.full_like(Y, np.nan))
    with pytest.warns(UserWarning, match="5 of 5 units are constant"):
        encoder = LinearReadout().fit(X, np.full_like(Y, 2.0))
    assert (encoder.predict(X[:3]) == 2).all()
    assert (encoder.torch_module()(torch.from_numpy(X[:3])) == 2).all()


# Losses


def test_correlation_is_given_the_scale_of_the_responses():
    X, Y = world(600)
    Xt, Yt = world(300, seed=1)
    encoder = LinearReadout(loss="correlation", epochs=40).fit(X, Y)
    train_rows, _ = split_rows(600, 0.1, None, 0)
    predicted = encoder.predict(X[train_rows])
    lines = [np.polyfit(predicted[:, v], Y[train_rows, v], 1) for v in range(5)]
    np.testing.assert_allclose(lines, [[1, 0]] * 5, atol=1e-3)
    assert encoder.score(Xt, Yt) > 0.4


def test_poisson_predicts_rates():
    X, Y = world(1500, noise=0.0)
    rates = np.log1p(np.exp((Y - 7) / 2))
    counts = np.random.default_rng(1).poisson(rates).astype(float)
    encoder = LinearReadout(loss="poisson", epochs=60).fit(X, counts)
    predicted = encoder.predict(X)
    assert predicted.min() > 0
    assert np.corrcoef(predicted.ravel(), rates.ravel())[0, 1] > 0.98
    likelihoods = [poisson.logpmf(counts, np.asarray(p, float)).mean() for p in (predicted, rates, counts.mean(0))]
    assert likelihoods[0] > likelihoods[2] + 0.95 * (likelihoods[1] - likelihoods[2])
    counts[5, 3] = -1
    with pytest.raises(ValueError, match=r"Y is negative in unit 3 \(least value -1\), and loss='poisson'"):
        encoder.fit(X, counts)


# Divergence


def test_diverging_training_stops_with_the_last_good_weights():
    X, Y = world(200)
    with pytest.warns(
        UserWarning, match=r"training diverged in epoch 1 \(loss .*\): stopped with the weights of epoch 0"
    ) as caught:
        encoder = LinearReadout(lr=1e6).fit(X, Y)
    assert len(caught) == 1
    assert "lower lr (now 1e+06)" in str(caught[0].message)
    assert np.isfinite(encoder.predict(X)).all()
    assert len(encoder.history_) == 2


def test_one_step_that_throws_the_weights_away_is_divergence():
    X, Y = world(100)
    with pytest.warns(UserWarning, match=r"diverged in epoch 1 .* weights of epoch 0"):
        encoder = LinearReadout(lr=1e12, batch_size=len(X), epochs=5).fit(X, Y)
    assert np.abs(encoder.predict(X)).max() < 100


def test_divergence_after_good_epochs_keeps_the_best():
    class Breaks(LinearReadout):
        def _build(self, setup, lr):
            module = super()._build(setup, lr)
            steps = []

            def constrain():
                steps.append(1)
                if len(steps) == 4 * 2:  # two steps an epoch: the end of the fourth
                    module.weight.fill_(float("nan"))

            module.constrain = constrain
            return module

    X, Y = world(200)
    with pytest.warns(UserWarning, match=r"diverged in epoch 4 .* weights of epoch 3 \(validation r 0\.\d+\)"):
        encoder = Breaks(lr=1e-2, batch_size=90).fit(X, Y)
    assert same(LinearReadout(lr=1e-2, batch_size=90, epochs=3).fit(X, Y).module_, encoder.module_)


def test_a_diverging_rate_among_several_loses_without_a_word():
    X, Y = world(200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = LinearReadout(lr=[1e6, 1e-2], epochs=5).fit(X, Y)
    assert encoder.lr_ == 1e-2
    assert np.isnan(encoder.lr_scores_[1e6])
    with pytest.raises(ValueError, match=r"training diverged at every lr of \[1000000.0, 10000000.0\]"):
        LinearReadout(lr=[1e6, 1e7], epochs=5).fit(X, Y)


# What comes in, what goes out


@pytest.mark.parametrize("kind", ["flat", "float16", "memmap", "h5py", "store"])
def test_tokens_may_be_kept_in_any_way(kind, tmp_path):
    X, Y = world(120)
    X = X.astype(np.float16)
    expected = LinearReadout(lr=1e-2, epochs=3, grid=(2, 3)).fit(X.astype(np.float32), Y)
    given, grid = X, (2, 3)
    if kind == "flat":
        given = X.reshape(120, -1).astype(np.float32)
    elif kind == "memmap":
        np.save(tmp_path / "x.npy", X)
        given = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "h5py":
        given = h5py.File(tmp_path / "x.h5", "w").create_dataset("x", data=X, chunks=(50, 6, 4))
    elif kind == "store":
        given, grid = TokenStore.build(tmp_path / "s", [X], 120, (2, 3)), None
    encoder = LinearReadout(lr=1e-2, epochs=3, grid=grid).fit(given, Y)
    assert same(encoder.module_, expected.module_)
    assert np.array_equal(encoder.predict(given), expected.predict(X))
    assert (encoder.grid_, encoder.n_tokens_, encoder.token_features_, encoder.n_features_in_) == ((2, 3), 6, 4, 24)


def test_a_table_may_be_followed_by_tokens():
    X, Y = world(60)
    table = pd.DataFrame(X.reshape(60, -1), columns=[f"f{i}" for i in range(24)])
    encoder = LinearReadout(lr=1e-2, epochs=2, grid=(2, 3)).fit(table, Y)
    assert list(encoder.feature_names_in_) == list(table.columns)
    again = LinearReadout(lr=1e-2, epochs=2, grid=(2, 3)).fit(table, Y).fit(X, Y)
    assert not hasattr(again, "feature_names_in_")
    assert same(encoder.module_, again.module_)
    half = X.reshape(60, -1).astype(np.float16)
    np.testing.assert_allclose(encoder.predict(table), again.predict(half), atol=0.02)
    assert np.array_equal(again.predict(X.tolist()), again.predict(X))


def test_one_image_is_enough_to_predict_and_too_few_to_fit():
    X, Y = world(100)
    encoder = LinearReadout(lr=1e-2, epochs=2).fit(X, Y)
    np.testing.assert_allclose(encoder.predict(X[:1]), encoder.predict(X)[:1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"1 stimulus \(n_samples=1\); expected at least 8"):
        LinearReadout().fit(X[:1], Y[:1])


def test_other_tokens_than_those_of_the_fit_are_refused():
    X, Y = world(100)
    encoder = LinearReadout(lr=1e-2, epochs=2, grid=(2, 3)).fit(X, Y)
    for wrong in (X[:, :5], X[..., :3], X[:, :, :, None], X.reshape(100, -1)[:, :23]):
        with pytest.raises(ValueError):
            encoder.predict(wrong)
    with pytest.raises(ValueError, match="the fit had 6 tokens of 4 features"):
        LinearReadout(lr=1e-2, epochs=2).fit(X, Y).predict(X[..., :3])
    bad = X.copy()
    bad[7, 1, 1] = np.nan
    with pytest.raises(ValueError, match="stimulus 7 the first"):
        encoder.predict(bad)
    with pytest.raises(ValueError, match="NaN or infinity"):
        LinearReadout().fit(bad, Y)


def test_a_vector_is_a_unit_without_its_axis():
    X, Y = world(100)
    vector = LinearReadout(lr=1e-2, epochs=3).fit(X, Y[:, 0])
    matrix = LinearReadout(lr=1e-2, epochs=3).fit(X, Y[:, :1])
    assert vector.predict(X).shape == (100,)
    assert np.array_equal(vector.predict(X), matrix.predict(X)[:, 0])
    assert np.ndim(vector.validation_r_) == 0
    assert np.isfinite(vector.score(X, Y[:, 0]))


def test_the_module_of_torch_gives_the_predictions_and_their_gradients():
    X, Y = world(120, offset=20.0)
    holed = np.c_[Y[:, :2], np.full(120, np.nan), Y[:, 2:]]
    with pytest.warns(UserWarning, match="1 of 6"):
        encoder = LinearReadout(lr=1e-2, epochs=3).fit(X, holed)
    module = encoder.torch_module()
    x = torch.from_numpy(X[:5]).requires_grad_()
    responses = module(x)
    np.testing.assert_array_equal(responses.detach().numpy(), encoder.predict(X[:5]))
    responses[:, 3].sum().backward()
    weight = encoder.module_.weight.detach()[:, 2].view(6, 4)
    std = X[split_rows(120, 0.1, None, 0)[0]].reshape(-1, 4).std(0)
    scale = Y[split_rows(120, 0.1, None, 0)[0], 2].std()
    np.testing.assert_allclose(x.grad[0].numpy(), weight.numpy() / std * scale, rtol=1e-4)
    next(module.parameters()).data.zero_()  # a copy
    assert encoder.module_.weight.any()


def test_routes_are_held_fixed_where_there_are_any():
    class Routes(LinearReadout):
        def _build(self, setup, lr):
            module = super()._build(setup, lr)
            module.detach_routing = False
            return module

    X, Y = world(60)
    plain, routes = (cls(lr=1e-2, epochs=1).fit(X, Y) for cls in (LinearReadout, Routes))
    assert routes.torch_module(detach_routing=True).module.detach_routing
    assert not routes.torch_module().module.detach_routing
    assert not routes.module_.detach_routing
    x = torch.from_numpy(X[:3])
    assert torch.equal(plain.torch_module(detach_routing=True)(x), plain.torch_module()(x))


def test_what_needs_places_is_refused_tokens_without_a_grid():
    class Places(LinearReadout):
        def _needs_grid(self):
            return "a Gaussian field"

    X, Y = world(60)
    with pytest.raises(ValueError, match=r"tokens of shape \(60, 6, 4\) come without a grid: a Gaussian field needs"):
        Places(lr=1e-2, epochs=1).fit(X, Y)
    assert Places(lr=1e-2, epochs=1, grid=(2, 3)).fit(X, Y).grid_ == (2, 3)
    assert Places(lr=1e-2, epochs=1).fit(X[:, 0], Y).grid_ == (1, 1)  # one token has one place


def test_every_epoch_has_its_own_order(monkeypatch):
    seen = []

    def spied(order, size, fixed=False):
        seen.append(tuple(order))
        return row_batches(order, size, fixed)

    monkeypatch.setattr("neuralign.encoders.spatial.training.row_batches", spied)
    X, Y = world(40)
    LinearReadout(lr=1e-2, epochs=3).fit(X, Y)
    orders = [order for order in seen if len(order) == 36]
    assert len(orders) == len(set(orders)) == 3


def test_a_fit_survives_pickling():
    X, Y = world(60)
    encoder = LinearReadout(lr=1e-2, epochs=2).fit(X, Y)
    assert np.array_equal(pickle.loads(pickle.dumps(encoder)).predict(X), encoder.predict(X))


def test_scores_of_units():
    X, Y = world(200)
    Xt, Yt = world(80, seed=1)
    encoder = LinearReadout(lr=1e-2, epochs=10).fit(X, Y)
    P = encoder.predict(Xt).astype(float)
    Yt[:20, 1] = np.nan
    Yt[:, 2] = 3.0
    known = ~np.isnan(Yt)
    with np.errstate(all="ignore"):
        r = np.array([np.corrcoef(P[k, v], Yt[k, v])[0, 1] for v, k in enumerate(known.T)])
        r2 = np.array([1 - ((P - Yt)[k, v] ** 2).mean() / Yt[k, v].var() for v, k in enumerate(known.T)])
    r2[2] = np.nan
    np.testing.assert_allclose(encoder.unit_scores(Xt, Yt), r, atol=1e-9)
    np.testing.assert_allclose(encoder.unit_scores(Xt, Yt, metric="r2"), r2, atol=1e-9)
    ceiling = np.array([0.5, 0.04, 0.5, 0.0, np.nan])
    shares = encoder.unit_scores(Xt, Yt, ceiling=ceiling)
    np.testing.assert_allclose(shares[:2], r[:2] * np.abs(r[:2]) / ceiling[:2])
    assert shares[1] > 1  # not clipped
    assert np.isnan(shares[2:]).all()  # without a ceiling there is no share of it
    with pytest.raises(ValueError, match=r"ceiling has shape \(4,\); expected \(5,\)"):
        encoder.unit_scores(Xt, Yt, ceiling=ceiling[:4])
    with pytest.raises(ValueError, match="metric='rho' is unknown"):
        encoder.unit_scores(Xt, Yt, metric="rho")


def test_the_table_of_units_is_handed_on():
    seen = {}

    class Reads(LinearReadout):
        def _build(self, setup, lr):
            seen.update(units=setup.units, kept=setup.kept, n_all=setup.n_all)
            return super()._build(setup, lr)

    X, Y = world(60)
    Y[:, 1] = np.nan
    table = pd.DataFrame({"region": list("abcde")}, index=range(10, 15))
    with pytest.warns(UserWarning, match="1 of 5"):
        Reads(lr=1e-2, epochs=1).fit(X, Y, units=table)
    assert list(seen["units"].region) == list("acde")
    assert (list(seen["kept"]), seen["n_all"]) == ([0, 2, 3, 4], 5)
    for wrong in (table[:4], list("abcde")):
        with pytest.raises(ValueError, match="units: found .* expected a table"):
            Reads().fit(X, Y, units=wrong)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"epochs": 0}, "epochs=0: expected a whole number, 1 or more"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"patience": True}, "patience=True"),
        ({"seed": -1}, "seed=-1"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001: expected a number of zero or more"),
        ({"lr": 0}, "lr=0: expected a number above zero"),
        ({"lr": []}, r"lr=\[\]"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"loss": "mae"}, "loss='mae' is unknown; did you mean 'mse'"),
        ({"precision": "float16"}, "precision='float16' is unknown; did you mean .*'bfloat16'"),
        ({"checkpoint": "fit.pt"}, "ends in .safetensors"),
        ({"checkpoint": "/nowhere/at/all/fit.safetensors"}, "no folder at /nowhere/at/all"),
        ({"device": "tpu"}, "device='tpu' is unknown"),
        ({"grid": (2, 2)}, r"6 tokens .* grid=\(2, 2\) has 4 places"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    X, Y = world(50)
    with pytest.raises(ValueError, match=message):
        LinearReadout(**parameters).fit(X, Y)


def test_a_bar_shows_validation_r(capsys):
    X, Y = world(60)
    LinearReadout(lr=1e-2, epochs=3, verbose=True).fit(X, Y)
    assert "epochs" in (shown := capsys.readouterr().err)
    assert "3/3" in shown
    assert "r=0." in shown
    LinearReadout(lr=1e-2, epochs=3, verbose=None).fit(X, Y)  # where nobody watches
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_module_learns_the_same():
    X, Y = world(160)
    rows = (np.arange(120), np.arange(120, 160))
    plain, fast = (
        LinearReadout(lr=1e-2, epochs=4, batch_size=40, validation=rows, compile=flag).fit(X, Y)
        for flag in (False, True)
    )
    np.testing.assert_allclose(fast.predict(X), plain.predict(X), atol=1e-3)


# Precision


def test_bfloat16_loses_next_to_nothing():
    X, Y = world(600, offset=300.0)
    Xt, Yt = world(300, offset=300.0, seed=1)
    scores = [LinearReadout(lr=1e-2, precision=name).fit(X, Y).unit_scores(Xt, Yt) for name in ("float32", "bfloat16")]
    assert not np.array_equal(*scores)
    np.testing.assert_allclose(*scores, atol=2e-2)
    assert abs(scores[0].mean() - scores[1].mean()) < 1e-3


def test_automatic_precision_needs_hardware_and_size(monkeypatch):
    large, small = (checked_tokens(np.ones((2, 64, d), np.float32)) for d in (256, 8))
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for there, tokens, expected in [(True, large, torch.bfloat16), (True, small, None), (False, large, None)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there, raising=False)
        assert half_precision("auto", tokens, cpu) == expected
    assert half_precision("bfloat16", small, cpu) == torch.bfloat16
    assert half_precision("float32", large, cpu) is None
