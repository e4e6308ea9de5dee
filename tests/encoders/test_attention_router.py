"""AttentionRouter as an estimator: what it learns, what it keeps, what it refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from neuralign.encoders import RidgeCV
from neuralign.encoders.routing.attention import AttentionRouter
from neuralign.encoders.routing.heads import RefittedResponses

GRID, CELLS, D, REGIONS, PER = (4, 4), 16, 12, 3, 4
LABELS = np.repeat(["FFA", "PPA", "EBA"], PER)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world(n, seed=0, noise=0.5):
    """Units read the attributes of one object of their region's category, wherever it lies."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    axes = np.linalg.qr(fixed.standard_normal((D, D)))[0]
    readout = fixed.standard_normal((REGIONS, PER, 4))
    attributes = rng.standard_normal((n, CELLS, 4))
    tokens = attributes @ axes[:, 4:8].T + 0.3 * rng.standard_normal((n, CELLS, D))
    cells = np.stack([rng.permutation(CELLS)[:REGIONS] for _ in range(n)])
    Y = []
    for region in range(REGIONS):
        tokens[np.arange(n), cells[:, region]] += 3 * axes[:, region]
        Y.append(attributes[np.arange(n), cells[:, region]] @ readout[region].T)
    Y = np.hstack(Y)
    return tokens.astype(np.float32), Y + noise * Y.std() * rng.standard_normal(Y.shape), cells


def router(**changes):
    settings = {"regions": LABELS, "grid": GRID, "lr": 1e-2, "epochs": 15, "device": "cpu", "validation": 0.2}
    return AttentionRouter(**(settings | changes))


@pytest.fixture(scope="module")
def fitted():
    torch.set_num_threads(1)
    tokens, Y, _ = world(600)
    return router().fit(tokens, Y)


def mean_r(encoder, tokens, Y):
    return np.nanmean(encoder.unit_scores(tokens, Y))


def test_it_finds_the_object_of_each_region_where_no_linear_readout_can(fitted):
    tokens, Y, cells = world(300, seed=1)
    train, Y_train, _ = world(600)
    linear = RidgeCV(standardise=True).fit(train.reshape(600, -1), Y_train).predict(tokens.reshape(300, -1))
    plain = np.mean([np.corrcoef(linear[:, u], Y[:, u])[0, 1] for u in range(Y.shape[1])])
    assert mean_r(fitted, tokens, Y) > 0.8 > 0.3 > plain
    maps = fitted.routing(tokens)
    peaks = maps.weights.reshape(300, REGIONS, -1).argmax(-1)
    assert (peaks == cells).mean() > 0.95


def test_maps_have_names_and_add_up_to_one(fitted):
    tokens = world(5, seed=1)[0]
    names = list("abcde")
    maps = fitted.routing(tokens, stimulus_ids=names)
    assert maps.queries == ("FFA", "PPA", "EBA") and maps.stimulus_ids == tuple(names) and maps.grid == GRID
    assert maps.weights.shape == (5, 3, 1, 4, 4) and maps.reduced
    every = fitted.routing(tokens, reduce=None)
    assert every.weights.shape == (5, 3, 4, 4, 4) and not every.reduced
    np.testing.assert_allclose(every.weights.sum((-1, -2)), 1, rtol=1e-5)
    np.testing.assert_allclose(every.weights.mean(2, keepdims=True), maps.weights, atol=1e-6)
    with pytest.raises(ValueError, match="2 names for 5 stimuli"):
        fitted.routing(tokens, stimulus_ids=["a", "b"])
    with pytest.raises(ValueError, match="'mean'"):
        fitted.routing(tokens, reduce="max")


def test_maps_of_more_queries_than_are_computed_at_a_time():
    tokens = world(40)[0]
    Y = np.random.default_rng(0).standard_normal((40, 400))
    found = router(query="unit", regions="region", epochs=1, heads=12).fit(tokens, Y)
    assert found.routing(tokens[:3]).weights.shape == (3, 400, 1, 4, 4)


def test_similar_regions_have_similar_queries():
    tokens, Y, _ = world(600)
    twice = np.hstack([Y[:, :PER], Y])  # a region that prefers what FFA prefers
    found = router(regions=np.r_[["OFA"] * PER, LABELS]).fit(tokens, twice)
    for similar in (found.query_similarity(), found.query_similarity("map", tokens[:50])):
        assert list(similar.index) == list(similar.columns) == ["OFA", "FFA", "PPA", "EBA"]
        np.testing.assert_allclose(np.diag(similar), 1, rtol=1e-6)
        others = similar.to_numpy()[np.triu_indices(4, 1)]
        assert similar.loc["OFA", "FFA"] == others.max() > np.sort(others)[-2] + 0.2
    with pytest.raises(ValueError, match="pass X"):
        found.query_similarity("map")
    with pytest.raises(ValueError, match="'query'"):
        found.query_similarity("cosine")


def test_one_token_gives_ridge_on_the_features():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 8)) * rng.uniform(0.1, 10, 8) + 5
    Y = X @ rng.standard_normal((8, 12)) + 20 * rng.standard_normal((200, 12))
    rows, alphas = (np.arange(150), np.arange(150, 200)), [10.0, 100.0, 1000.0]
    encoder = AttentionRouter(regions=LABELS, head="ridge", epochs=2, lr=1e-3, validation=rows, alphas=alphas)
    encoder.fit(X, Y)
    ridge = RidgeCV(alphas, cv=[rows], standardise=True).fit(X, Y)
    assert encoder.grid_ == (1, 1)
    np.testing.assert_allclose(encoder.head_alpha_, ridge.alpha_ * encoder.heads_)
    np.testing.assert_allclose(encoder.validation_r_, ridge.cv_score_, atol=1e-5)
    np.testing.assert_allclose(encoder.predict(X), ridge.predict(X), rtol=1e-5, atol=1e-5 * Y.std())


def test_bfloat16_scores_as_float32_does():
    tokens, Y, _ = world(1000)
    test, Y_test, _ = world(1000, seed=1)
    scores = [mean_r(router(precision=p, head="sgd").fit(tokens, Y), test, Y_test) for p in ("float32", "bfloat16")]
    assert scores[0] > 0.8
    assert abs(scores[0] - scores[1]) < 1e-3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(fitted):
    tokens, Y, _ = world(600)
    again = clone(fitted).fit(tokens, Y)
    assert np.array_equal(again.predict(tokens), fitted.predict(tokens))
    other = clone(fitted).set_params(seed=1).fit(tokens, Y)
    assert not np.allclose(other.predict(tokens), fitted.predict(tokens), atol=1e-3)


def test_names_of_regions_and_their_order_change_nothing(fitted):
    tokens, Y, _ = world(600)
    mask = pd.DataFrame(np.array(["EBA", "PPA", "FFA"])[:, None] == LABELS, index=["one", "two", "three"])
    renamed = router(regions=mask).fit(tokens, Y)
    assert renamed.regions_ == ("one", "two", "three")
    np.testing.assert_allclose(renamed.predict(tokens), fitted.predict(tokens), atol=2e-3)
    maps, others = renamed.routing(tokens[:20]), fitted.routing(tokens[:20])
    np.testing.assert_allclose(maps.weights[:, ::-1], others.weights, atol=2e-3)


def test_without_positions_tokens_in_any_order_give_the_same_answer():
    tokens, Y, _ = world(300)
    blind = router(position="none", grid=None, epochs=3).fit(tokens, Y)
    rng = np.random.default_rng(3)
    shuffled = np.stack([rng.permutation(image) for image in tokens])
    np.testing.assert_allclose(blind.predict(shuffled), blind.predict(tokens), atol=1e-4)
    assert blind.routing(tokens[:2]).weights.shape == (2, 3, 1, 1, CELLS)


def test_units_that_are_not_known_leave_the_others_as_they_are():
    tokens, Y, _ = world(200)
    holes = Y.copy()
    holes[:, 8:] = np.nan
    with pytest.warns(UserWarning, match="4 of 12") as caught:
        found = router(epochs=3).fit(tokens, holes)
    assert len(caught) == 1
    assert found.regions_ == ("FFA", "PPA") and np.isnan(found.predict(tokens)[:, 8:]).all()
    assert list(found.head_[8:]) == [""] * 4 and np.isnan(found.head_alpha_[8:]).all()
    kept = router(regions=LABELS[:8], epochs=3).fit(tokens, Y[:, :8])
    assert np.array_equal(found.predict(tokens)[:, :8], kept.predict(tokens))


def test_single_missing_responses_do_not_count():
    tokens, Y, _ = world(600)
    rng = np.random.default_rng(0)
    holes = np.where(rng.random(Y.shape) < 0.2, np.nan, Y)
    test, Y_test, _ = world(300, seed=1)
    assert mean_r(router().fit(tokens, holes), test, Y_test) > 0.75


def test_the_better_head_of_each_unit_is_kept(fitted):
    tokens, Y, _ = world(600)
    trained, closed = router(head="sgd").fit(tokens, Y), router(head="ridge").fit(tokens, Y)
    assert set(trained.head_) == {"sgd"} and set(closed.head_) == {"ridge"}
    best = np.where(closed.validation_r_ >= trained.validation_r_, "ridge", "sgd")
    np.testing.assert_array_equal(fitted.head_, best)
    np.testing.assert_allclose(fitted.validation_r_, np.fmax(closed.validation_r_, trained.validation_r_))
    mixed, parts = fitted.predict(tokens), {"sgd": trained.predict(tokens), "ridge": closed.predict(tokens)}
    for unit, head in enumerate(fitted.head_):
        np.testing.assert_allclose(mixed[:, unit], parts[head][:, unit], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", ["pooled", "token"])
@pytest.mark.parametrize("overlap", ["mean", "sum", "first"])
def test_heads_in_closed_form_under_every_rule(features, overlap):
    mask = np.array(["FFA", "PPA", "EBA"])[:, None] == LABELS
    mask[1, :2] = True  # in two regions
    tokens, Y, _ = world(400)
    found = router(regions=mask, overlap=overlap, head_features=features, head="ridge").fit(tokens, Y)
    assert isinstance(found.module_, RefittedResponses)
    test, Y_test, _ = world(300, seed=1)
    assert mean_r(found, test, Y_test) > 0.7


def test_heads_are_refitted_to_other_responses_of_the_same_routing(fitted):
    tokens, Y, _ = world(600, seed=4)
    before = fitted.predict(tokens)
    other = 100 + 7 * Y[:, ::-1].reshape(600, REGIONS, PER)[:, ::-1].reshape(600, -1)  # other units of each region
    new = fitted.refit_heads(tokens, other)
    assert np.array_equal(fitted.predict(tokens), before)
    test, Y_test, _ = world(300, seed=5)
    wanted = 100 + 7 * Y_test[:, ::-1].reshape(300, REGIONS, PER)[:, ::-1].reshape(300, -1)
    assert mean_r(new, test, wanted) > 0.8
    assert abs(new.predict(test).mean() - wanted.mean()) < 1
    assert np.array_equal(new.routing(test[:9]).weights, fitted.routing(test[:9]).weights)
    few = other.copy()
    few[3:, 0] = np.nan
    kept = new.refit_heads(tokens, few, rows=(np.arange(400), np.arange(400, 600)))
    np.testing.assert_allclose(kept.predict(test)[:, 0], new.predict(test)[:, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="3 units and the fit had 12"):
        fitted.refit_heads(tokens, Y[:, :3])


@pytest.mark.parametrize("changes", [{"query": "unit"}, {"query": "low-rank", "rank": 6}])
def test_queries_of_units(changes):
    tokens, Y, cells = world(600)
    test, Y_test, cells = world(200, seed=1)
    found = router(**changes).fit(tokens, Y)
    assert mean_r(found, test, Y_test) > 0.75
    assert found.regions_ == tuple(map(str, range(12))) and set(found.head_) == {"sgd"}
    maps = found.routing(test)
    peaks = maps.weights.reshape(200, 12, -1).argmax(-1)
    assert (peaks == np.repeat(cells, PER, axis=1)).mean() > 0.8


def test_ridge_heads_of_unit_queries():
    tokens, Y, _ = world(300)
    found = router(query="unit", head="ridge", epochs=8).fit(tokens, Y)
    assert set(found.head_) == {"ridge"}
    test, Y_test, _ = world(200, seed=1)
    assert mean_r(found, test, Y_test) > 0.5


@pytest.mark.parametrize("position", ["learned", "map"])
def test_places_alone_are_a_mask(position):
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((500, CELLS, D)).astype(np.float32)
    Y = tokens[:, 6] @ rng.standard_normal((D, 12)) + rng.standard_normal((500, 12))
    found = router(content=False, position=position, epochs=40, lr=3e-2).fit(tokens[:400], Y[:400])
    maps = found.routing(tokens[400:])
    assert np.ptp(maps.weights, axis=0).max() < 1e-6
    assert (maps.weights[0].reshape(3, -1).argmax(-1) == 6).all()
    assert mean_r(found, tokens[400:], Y[400:]) > 0.8


def test_counts_take_a_poisson_loss_and_trained_heads():
    tokens, Y, _ = world(600)
    counts = np.random.default_rng(0).poisson(np.exp(0.5 * Y / Y.std()))
    found = router(loss="poisson").fit(tokens, counts.astype(float))
    assert set(found.head_) == {"sgd"} and (found.predict(tokens) > 0).all()
    assert mean_r(found, tokens, counts) > 0.4
    with pytest.raises(ValueError, match="link"):
        found.refit_heads(tokens, counts)


def test_correlation_loss_answers_on_the_scale_of_the_responses():
    tokens, Y, _ = world(400)
    found = router(loss="correlation", head="sgd").fit(tokens, 50 + 10 * Y)
    predicted = found.predict(tokens)
    assert abs(predicted.mean() - 50) < 3
    assert found.score(tokens, 50 + 10 * Y) > 0.3


def test_gradients_of_tokens_with_routes_held_fixed(fitted):
    tokens = torch.from_numpy(world(3, seed=1)[0])
    plain, held = fitted.torch_module(), fitted.torch_module(detach_routing=True)
    np.testing.assert_allclose(plain(tokens).detach(), fitted.predict(tokens.numpy()), rtol=1e-5, atol=1e-5)
    gradients = []
    for module in (plain, held):
        x = tokens.clone().requires_grad_()
        module(x)[:, 0].sum().backward()
        gradients.append(x.grad)
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3
    # With routes held fixed a unit is linear in the tokens, and reaches each as far as its heads attend to it.
    weights = torch.from_numpy(fitted.routing(tokens.numpy(), reduce=None).weights)[:, 0].flatten(2).mean(1)
    reached = gradients[1].norm(dim=2) / gradients[1].norm(dim=2).sum(1, keepdim=True)
    assert np.corrcoef(weights.flatten(), reached.flatten())[0, 1] > 0.8


def test_a_fit_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    tokens, Y, _ = world(200)
    whole = router(epochs=6, dropout=0.1, ffn=16).fit(tokens, Y)
    path = tmp_path / "router.safetensors"
    router(epochs=3, dropout=0.1, ffn=16, checkpoint=path).fit(tokens, Y)
    resumed = router(epochs=6, dropout=0.1, ffn=16, checkpoint=path).fit(tokens, Y)
    assert np.array_equal(resumed.predict(tokens), whole.predict(tokens))


def test_one_image_is_enough_to_predict_and_not_to_fit(fitted):
    tokens, Y, _ = world(600)
    np.testing.assert_allclose(fitted.predict(tokens[:1])[0], fitted.predict(tokens)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="at least 8"):
        router().fit(tokens[:1], Y[:1])


def test_a_vector_of_responses_loses_the_unit_axis():
    tokens, Y, _ = world(100)
    found = router(regions="region", epochs=2).fit(tokens, Y[:, 0])
    assert found.predict(tokens).shape == (100,) and np.ndim(found.validation_r_) == 0
    assert found.regions_ == ("all",)


def test_regions_come_from_the_table_of_units():
    tokens, Y, _ = world(100)
    units = pd.DataFrame({"region": LABELS})
    found = router(regions="region", epochs=2).fit(tokens, Y, units=units)
    assert found.regions_ == ("FFA", "PPA", "EBA")
    np.testing.assert_array_equal(found.mask_, np.array(found.regions_)[:, None] == LABELS)


def test_the_published_settings():
    published = AttentionRouter.published(epochs=2)
    assert (published.heads, published.ffn, published.overlap, published.head) == (16, 1024, "sum", "sgd")
    assert (published.dropout, published.lr, published.clip, published.halve_after) == (0.1, 5e-4, 0.1, 3)
    assert (published.batch_size, published.epochs) == (32, 2)
    tokens, Y, _ = world(60)
    found = published.set_params(regions=LABELS, grid=GRID, width=16, ffn=8).fit(tokens, Y)
    assert found.module_.router.ffn is not None and not found.module_.router.folds(torch.float32)


BAD = [
    ({"heads": 5, "width": 768}, ["heads=5 do not divide width=768", "1, 2, 3, 4, 6"]),
    ({"heads": 5}, ["heads=5 do not divide width=12", "1, 2, 3, 4, 6, 12"]),
    ({"heads": 0}, ["heads=0"]),
    ({"width": -3}, ["width=-3"]),
    ({"grid": None}, ["without a grid", "position='sincos'", "position='none'"]),
    ({"grid": (3, 4)}, ["16 tokens", "12 places"]),
    ({"query": "voxel"}, ["query", "'unit'"]),
    ({"position": "sine"}, ["position", "'sincos'"]),
    ({"head": "ols"}, ["head", "'ridge'"]),
    ({"overlap": "max"}, ["overlap", "'mean'"]),
    ({"head_features": "tokens"}, ["head_features", "'token'"]),
    ({"fold": "yes"}, ["fold='yes'"]),
    ({"fold": True, "dropout": 0.1}, ["fold=True with dropout=0.1"]),
    ({"dropout": 1.0}, ["dropout=1.0"]),
    ({"ffn": -1}, ["ffn=-1"]),
    ({"content": False, "position": "none"}, ["nothing to route by"]),
    ({"content": False, "dropout": 0.1}, ["places alone"]),
    ({"loss": "poisson", "head": "ridge"}, ["counts"]),
    ({"regions": LABELS[:5]}, [r"\(5,\)", r"\(12,\)"]),
    ({"regions": np.vstack([np.ones(12, bool), np.zeros(12, bool)])}, ["1 of 2 regions have no units: 1"]),
    ({"alphas": [-1.0]}, ["alphas"]),
]


@pytest.mark.parametrize("changes, words", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_settings_are_refused_with_what_mends_them(changes, words):
    tokens, Y, _ = world(40)
    for word in words:
        with pytest.raises(ValueError, match=word):
            router(**({"epochs": 1} | changes)).fit(tokens, Y)


def test_training_that_diverges_stops_with_the_last_good_weights():
    tokens, Y, _ = world(100)
    with pytest.warns(UserWarning, match="diverged.*lower lr"):
        found = router(lr=1e6, clip=None, head="sgd", regions="region").fit(tokens, Y)
    assert np.isfinite(found.predict(tokens)).all()


def test_a_fit_without_surprises_says_nothing():
    tokens, Y, _ = world(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        router(epochs=2).fit(tokens, Y).predict(tokens)


@parametrize_with_checks(
    [AttentionRouter(epochs=2, lr=1e-2, verbose=False)],
    expected_failed_checks=lambda estimator: {
        "check_regressor_multioutput": "predictions are float32, as those of all encoders that torch trains"
    },
)
def test_sklearn_agrees_that_it_is_an_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check(estimator)
