"""Rankings, projections and ascents whose answers are known beforehand."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from neuralign.align import selectivity
from neuralign.align.objectives import objective
from neuralign.align.selectivity import ascend, project_weights, rank_stimuli
from neuralign.datasets.token_world import token_world
from neuralign.encoders.routing.attention import AttentionRouter


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Rankings


class Linear:
    """An encoder of mean tokens with known weights (feature, unit)."""

    def __init__(self, W, bias=0.0):
        self.W, self.bias = np.asarray(W, np.float32), bias

    def predict(self, X):
        return np.asarray(X).mean(1) @ self.W + self.bias

    def torch_module(self, detach_routing=False):
        module = torch.nn.Linear(*self.W.shape)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(self.W.T))
            module.bias.fill_(self.bias)
        return torch.nn.Sequential(Mean(), module)


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_a_planted_bank_is_ranked_by_its_category():
    """Units that read the label direction of a category rank the images that hold it first."""
    world = token_world("content", n=400, n_test=0, n_validation=0, grid=(3, 3), seed=1)
    holds = (world.labels == 2).any(1)
    direction = world.tokens[world.labels == 2].mean(0) - world.tokens[world.labels == -1].mean(0)
    encoder = Linear(np.stack([direction, -direction, np.zeros(32)], axis=1))
    ids = [f"image-{i}" for i in range(400)]
    table = rank_stimuli(encoder, world.tokens, objective("roi-contrast", units=[0], against=[1]), ids)
    assert list(table.columns) == ["stimulus", "score", "rank"]
    assert list(table["rank"]) == list(range(1, 401)) and (table["score"].diff().dropna() <= 0).all()
    first = table["stimulus"].head(int(holds.sum() * 0.8)).map(dict(zip(ids, holds, strict=True)))
    assert first.mean() > 0.99
    exact = encoder.predict(world.tokens)
    assert np.allclose(table.set_index("stimulus").loc[ids, "score"], exact[:, 0] - exact[:, 1], atol=1e-5)


def test_the_top_is_the_head_of_the_whole_and_a_callable_will_do(monkeypatch):
    monkeypatch.setattr(selectivity, "STIMULI", 7)
    X = np.random.default_rng(0).standard_normal((40, 3, 5)).astype(np.float32)
    encoder = Linear(np.random.default_rng(1).standard_normal((5, 4)))
    aim = objective("unit", unit=2, sign=-1)
    whole = rank_stimuli(encoder, X, aim)
    assert rank_stimuli(encoder, X, aim, top=5).equals(whole.head(5))
    by_callable = rank_stimuli(encoder.torch_module(), X, aim)
    assert list(by_callable["stimulus"]) == list(whole["stimulus"])
    assert np.allclose(by_callable["score"], whole["score"], atol=1e-6)
    assert list(whole["stimulus"]) == list(np.argsort(encoder.predict(X)[:, 2]))


def test_ties_keep_their_order_and_missing_scores_come_last():
    values = np.array([[1.0], [2.0], [np.nan], [2.0], [0.0]])

    class Table:
        def predict(self, X):
            return values

    with pytest.warns(UserWarning, match="1 of 5 stimuli have no score") as caught:
        table = rank_stimuli(Table(), np.zeros((5, 1)), objective("unit", unit=0))
    assert len(caught) == 1
    assert list(table["stimulus"]) == [1, 3, 0, 4, 2]
    assert list(table["rank"][:4]) == [1, 2, 3, 4] and table["rank"].isna().tolist() == [False] * 4 + [True]


def test_rankings_refuse_what_cannot_be_ranked():
    X, aim = np.zeros((3, 2, 5), np.float32), objective("unit", unit=0)
    encoder = Linear(np.ones((5, 1)))
    for options, message in (
        ({"stimulus_ids": ["a", "b"]}, "stimulus_ids names 2 stimuli, X has 3"),
        ({"stimulus_ids": ["a", "b", "a"]}, "names 1 stimuli twice"),
        ({"top": 0}, "top=0"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_stimuli(encoder, X, aim, **options)
    with pytest.raises(ValueError, match=r"the objective gave shape \(\) for 3 stimuli"):
        rank_stimuli(encoder, X, torch.sum)


# Projections


def slow_projection(w, bank, temperature):
    """One unit, in the words of the paper."""
    norms = np.array([np.sqrt(np.dot(m, m)) for m in bank])
    w = w / np.sqrt(np.dot(w, w))
    logits = np.array([temperature * np.dot(w, m) / norm for m, norm in zip(bank, norms, strict=True)])
    p = np.exp(logits - logsumexp(logits))
    direction = sum(pk * m / norm for pk, m, norm in zip(p, bank, norms, strict=True))
    return sum(p * norms) * direction / np.sqrt(np.dot(direction, direction))


@pytest.fixture(scope="module")
def bank():
    return np.random.default_rng(3).standard_normal((500, 12)) * np.random.default_rng(4).uniform(0.5, 2, (500, 1))


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(5).standard_normal((12, 9))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 150.0, 1e5])
def test_projection_against_the_plain_sum(bank, weights, temperature, monkeypatch):
    expected, before = np.stack([slow_projection(w, bank, temperature) for w in weights.T], axis=1), bank.copy()
    assert np.allclose(project_weights(weights, bank, temperature), expected, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(selectivity, "ENTRIES", 100)
    for chunk in (1, 7, 499, 500):
        chunked = project_weights(weights, bank, temperature, chunk=chunk)
        assert np.allclose(chunked, expected, rtol=1e-10, atol=1e-12)
    assert np.allclose(project_weights(weights[:, 0], bank, temperature), expected[:, 0], rtol=1e-10, atol=1e-12)
    assert np.allclose(project_weights(weights * 40, bank, temperature), expected, rtol=1e-10, atol=1e-12)
    assert np.array_equal(bank, before)


def test_projection_goes_from_the_mean_to_the_nearest(bank, weights):
    directions = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    nearest = np.argmax(directions @ weights, axis=0)
    assert np.allclose(project_weights(weights, bank, 1e7), bank[nearest].T, rtol=1e-6)
    mean = directions.mean(0)
    mean *= np.linalg.norm(bank, axis=1).mean() / np.linalg.norm(mean)
    assert np.allclose(project_weights(weights, bank, 0), mean[:, None], rtol=1e-10)


def test_equal_lengths_are_kept(bank, weights):
    bank = 3.0 * bank / np.linalg.norm(bank, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(project_weights(weights, bank, 20.0), axis=0), 3.0)


def test_units_without_direction_are_nan_and_counted(bank, weights):
    W = weights.copy()
    W[:, 2], W[0, 5] = 0.0, np.nan
    with pytest.warns(UserWarning, match="2 of 9 units have no direction") as caught:
        found = project_weights(W, bank)
    assert len(caught) == 1
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert np.isnan(found[:, [2, 5]]).all()
    assert np.allclose(found[:, kept], project_weights(weights, bank)[:, kept])


def test_projections_refuse_what_has_no_direction(bank, weights):
    zero = bank.copy()
    zero[321] = 0
    with pytest.raises(ValueError, match="1 embeddings of the bank, the first of them row 321"):
        project_weights(weights, zero, chunk=100)
    for wrong, message in ((bank[:, :5], "weights have 12 features"), (bank[:0], "at least one embedding")):
        with pytest.raises(ValueError, match=message):
            project_weights(weights, wrong)
    with pytest.raises(ValueError, match="temperature=-1 must be finite"):
        project_weights(weights, bank, temperature=-1)


# Ascents


def fourier(size):
    """Coefficients (stimulus, 2, size, size) to images as one token: an orthonormal map onto real images."""

    def render(coefficients):
        spectrum = torch.complex(coefficients[:, 0], coefficients[:, 1])
        return torch.fft.ifft2(spectrum, norm="ortho").real.flatten(1)[:, None]

    return render


@pytest.mark.parametrize("space", ["pixels", "fourier"])
def test_a_linear_unit_is_driven_by_its_weights(space):
    size = 8
    rng = np.random.default_rng(0)
    w = rng.standard_normal((size * size, 3)) * np.array([1.0, 30.0, 1e-3])  # whatever the scale of responses
    encoder = Linear(w, bias=2.0)
    render = fourier(size) if space == "fourier" else (lambda p: p.flatten(1)[:, None])
    shape = (2, 2, size, size) if space == "fourier" else (2, size, size)
    start = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    for unit in range(3):
        for sign in (1, -1):
            found = ascend(start, render, encoder, objective("unit", unit=unit, sign=sign), norm=2.0)
            image = found.image[:, 0]
            cosine = image @ w[:, unit] / np.linalg.norm(image, axis=1) / np.linalg.norm(w[:, unit])
            assert (sign * cosine > 0.99).all(), "dividing each coordinate by its own gradient gives sign(w)"
            assert np.allclose(np.linalg.norm(found.parameters.reshape(2, -1), axis=1), 2.0, rtol=1e-5)


def test_an_ascent_finds_the_top_of_a_hill():
    """Without a norm, and with stimuli that must not influence each other."""
    target = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 10)))
    start = np.zeros((3, 10))

    def hill(x):
        return x[:, 0]

    def aim(r):
        return -((r - target) ** 2).sum(1) * torch.tensor([1.0, 1e4, 1e-4], dtype=torch.float64)

    found = ascend(start, lambda p: p[:, None], hill, aim, steps=400)
    assert np.allclose(found.parameters, target, atol=0.02)
    assert found.scores.shape == (401, 3) and found.parameters.dtype == np.float64
    for i in range(3):
        alone = ascend(
            start[i : i + 1],
            lambda p: p[:, None],
            hill,
            lambda r, i=i: -((r - target[i]) ** 2).sum(1) * [1.0, 1e4, 1e-4][i],
            steps=400,
        )
        assert np.allclose(alone.parameters[0], found.parameters[i], atol=1e-12)
    assert np.array_equal(found.parameters[:, None], found.image)


def test_the_best_on_the_way_is_returned():
    def wobble(r):
        return torch.cos(7 * r[:, 0])

    found = ascend(np.full((1, 1), 0.3), lambda p: p[:, None], lambda x: x[:, 0], wobble, steps=8, lr=0.5)
    reached = np.cos(7 * found.parameters[0, 0])
    assert np.isclose(reached, found.scores.max()) and found.scores[-1, 0] < reached
    still = ascend(np.full((1, 1), 0.3), lambda p: p[:, None], lambda x: x[:, 0], wobble, steps=0)
    assert still.parameters[0, 0] == 0.3 and still.scores.shape == (1, 1)


def test_the_first_step_has_the_size_of_lr():
    start = np.random.default_rng(2).standard_normal((4, 50))
    w = np.random.default_rng(3).standard_normal(50)
    for norm, size in ((None, 0.05), (6.0, 0.05 * 6 / np.sqrt(50))):
        begun = start if norm is None else start * norm / np.linalg.norm(start, axis=1, keepdims=True)
        found = ascend(
            begun,
            lambda p: p[:, None],
            lambda x: x[:, 0] @ torch.from_numpy(w)[:, None],
            lambda r: r[:, 0],
            steps=1,
            norm=norm,
        )
        expected = begun + size * w / np.sqrt((w**2).mean())
        if norm is not None:
            expected *= norm / np.linalg.norm(expected, axis=1, keepdims=True)
        assert np.allclose(found.parameters, expected, atol=1e-12)


def test_renderers_that_draw_are_seeded_and_leave_the_generator_alone():
    def run(seed):
        return ascend(
            np.ones((2, 4)),
            lambda p: (p + 0.1 * torch.randn_like(p))[:, None],
            lambda x: x[:, 0],
            lambda r: -(r**2).sum(1),
            steps=5,
            seed=seed,
        ).parameters

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = run(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(first, run(0)) and not np.array_equal(first, run(1))


def test_ascents_refuse_what_cannot_climb():
    start, aim = np.ones((2, 4)), lambda r: r.sum(1)

    def run(start=start, respond=lambda x: x[:, 0], aim=aim, **options):
        return ascend(start, lambda p: p[:, None], respond, aim, **options)

    for options, message in (
        ({"start": np.ones((2, 4), int)}, "give floating point"),
        ({"start": np.ones(4)}, "give floating point"),
        ({"steps": -1}, "steps=-1 must be at least 0"),
        ({"norm": 0.0}, "norm=0.0 above 0"),
        ({"start": np.zeros((2, 4)), "norm": 1.0}, "cannot be given to parameters that are all zero"),
        ({"aim": lambda r: r.sum(1) / 0}, r"gave shape \(2,\), 2 of them not finite, at step 0"),
        ({"aim": torch.sum}, r"gave shape \(\)"),
        ({"respond": lambda x: x[:, 0].detach()}, "does not depend on the parameters"),
        ({"respond": object()}, "object gives no gradients"),
        ({"detach_routing": True}, "detach_routing needs an encoder with torch_module"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**options)


# With an attention encoder


@pytest.fixture(scope="module")
def router():
    """Two regions over 16 tokens, three units, one of which has no responses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    world = token_world("content", n=200, n_test=0, n_validation=50, grid=(4, 4), categories=2, units_per_region=5)
    Y = world.responses.copy()
    Y[:, 3] = np.nan
    encoder = AttentionRouter(
        regions=world.regions, grid=world.grid, lr=1e-2, epochs=20, validation=(world.train, world.validation)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        encoder.fit(world.tokens, Y)
    yield world, encoder
    torch.set_num_threads(threads)


@pytest.mark.parametrize("detach_routing", [False, True])
def test_gradients_with_and_without_the_route(router, detach_routing):
    """Detached, they are those of responses whose maps are held where the tokens put them."""
    world, encoder = router
    tokens = torch.from_numpy(world.tokens[:3])
    module = encoder.torch_module(detach_routing=detach_routing)
    aim = objective("roi-contrast", units=[0, 1, 2, 3], against=[7])
    x = tokens.clone().requires_grad_()
    (found,) = torch.autograd.grad(aim(module(x)).sum(), x)
    assert found.isfinite().all()

    heads = encoder.routing(world.tokens[:3], reduce=None).weights  # (stimulus, query, head, y, x)
    step, checked = 0.02, 0  # the module computes in float32
    for token in (0, int(world.target_cell[0, 0]), 11):
        for feature in (0, 5, 17):
            moved = tokens.clone()
            moved[:, token, feature] += step
            if detach_routing:
                up, down = (at_fixed_maps(encoder, world, z.double(), heads) for z in (moved, 2 * tokens - moved))
            else:
                with torch.no_grad():
                    up, down = module(moved), module(2 * tokens - moved)
            expected = (aim(up) - aim(down)) / (2 * step)
            assert torch.allclose(found[:, token, feature], expected.float(), rtol=5e-3, atol=2e-4)
            checked += int((expected.abs() > 5e-3).sum())
    assert checked >= 5


def at_fixed_maps(encoder, world, tokens, heads):
    """Responses to tokens under given maps: exactly linear in tokens then, so that one regression finds them."""
    maps = torch.from_numpy(heads).double().flatten(3)
    X = torch.from_numpy(world.tokens).double()
    own = torch.from_numpy(encoder.routing(world.tokens, reduce=None).weights).double().flatten(3)
    predicted = torch.from_numpy(encoder.predict(world.tokens)).double()
    found = torch.full((len(tokens), predicted.shape[1]), torch.nan, dtype=torch.float64)
    for unit in range(predicted.shape[1]):
        if predicted[:, unit].isnan().any():
            continue
        query = encoder.regions_.index(world.regions[unit])
        pooled = torch.einsum("sht,std->shd", own[:, query], X).flatten(1)
        design = torch.cat([pooled, torch.ones(len(X), 1, dtype=torch.float64)], 1)
        weights = torch.linalg.lstsq(design, predicted[:, unit], driver="gelsd").solution
        assert torch.allclose(design @ weights, predicted[:, unit], atol=1e-4)
        at = torch.einsum("sht,std->shd", maps[:, query], tokens).flatten(1)
        found[:, unit] = at @ weights[:-1] + weights[-1]
    return found


def test_an_ascent_through_a_router_brings_its_object_to_where_it_looks(router):
    world, encoder = router
    noise = world.tokens[(world.labels == -1).all(1)][:4]
    unit = objective("roi-mean", units=[0, 1, 2, 3, 4])
    free = ascend(noise, lambda p: p, encoder, unit, steps=60, lr=0.02)
    fixed = ascend(noise, lambda p: p, encoder, unit, steps=60, lr=0.02, detach_routing=True)
    for found in (free, fixed):
        assert (found.scores.max(0) > found.scores[0] + 1).all()
    label = world.tokens[world.labels == 0].mean(0) - world.tokens[world.labels == -1].mean(0)
    label /= np.linalg.norm(label)
    gained = [(found.parameters - noise) @ label for found in (free, fixed)]
    assert (gained[0].max(1) > 2 * np.abs(gained[1]).max(1)).all(), "only with its route free does the label grow"
