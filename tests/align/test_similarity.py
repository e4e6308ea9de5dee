"""Every measure is held to every promise of its card, and the checks themselves are shown to see a false one."""

import itertools
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from neuralign.align.similarity import SimilarityCard, card, estimator, measures, similarity
from neuralign.align.similarity.cards import _HOMES, DISTANCES, INVARIANCES, centred, measure, undefined
from neuralign.align.similarity.kernel_analysis import kernel_analysis

NAMES = list(_HOMES)
# (stimuli, features of X, features of Y); the last has more features than stimuli.
WIDTHS = [(40, 8, 6), (40, 7, 7)]
WIDE = (20, 50, 30)


def is_pair(name):
    return card(name).kind == "pair"


PAIRS = [name for name in NAMES if _HOMES[name] not in ("separability", "kernel_analysis")]


def value_of(name):
    """The measure as a function of X and Y that is silent where it is undefined."""

    def function(X, Y):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == "kernel-analysis":  # every resample makes the same promises
                return kernel_analysis(X, Y, resamples=1).area
            return similarity(name, X, Y)

    return function


def related(rng, n, p, q, noise=0.5):
    """Two representations of a common code: features of different size, off zero, not aligned with one another."""
    code = rng.normal(size=(n, 4))
    sides = []
    for width in (p, q):
        side = code @ rng.normal(size=(4, width)) + noise * rng.normal(size=(n, width))
        sides.append(side * np.exp(rng.normal(size=width) / 2) + 2 * rng.normal(size=width))
    return sides


def classes(rng, n, p, separation=2.0):
    """A representation and labels of two classes, with class means that far apart in standard deviations."""
    labels = np.arange(n) % 2
    means = separation * rng.normal(size=(2, p))
    X = means[labels] + rng.normal(size=(n, p))
    return X * np.exp(rng.normal(size=p) / 2) + rng.normal(size=p), labels


def inputs(one, rng, n, p, q):
    return related(rng, n, p, q) if one.kind == "pair" else classes(rng, n, p)


def rotation(rng, p):
    return np.linalg.qr(rng.normal(size=(p, p)))[0]


def changed(X, invariance, rng):
    n, p = X.shape
    if invariance == "permutation":
        return X[:, np.roll(rng.permutation(p), 1)]
    if invariance == "orthogonal":
        return X @ rotation(rng, p)
    if invariance == "isotropic-scaling":
        return 3.7 * X
    if invariance == "feature-scaling":
        return X * np.exp(rng.normal(size=p))
    if invariance == "pattern-scaling":
        return X * np.exp(rng.normal(size=(n, 1)))
    if invariance == "shift-all":
        return X + 4.3
    if invariance == "translation":
        return X + 5 * rng.normal(size=p)
    assert invariance == "affine"
    return X @ (rotation(rng, p) * np.linspace(0.4, 2.5, p) @ rotation(rng, p)) + 3 * rng.normal(size=p)


def largest_changes(one, function):
    """Of the value under every invariance, over X and over Y changed alone, and over draws."""
    changes = dict.fromkeys(INVARIANCES, 0.0)
    for seed, (n, p, q) in itertools.product(range(3), WIDTHS if one.kind == "pair" else WIDTHS[:1]):
        rng = np.random.default_rng([seed, n, p])
        X, Y = inputs(one, rng, n, p, q)
        before = function(X, Y)
        assert np.isfinite(before), f"{one.name} has no value on plain data"
        for invariance in INVARIANCES:
            after = [function(changed(X, invariance, rng), Y)]
            if one.kind == "pair":
                after.append(function(X, changed(Y, invariance, rng)))
            changes[invariance] = max(changes[invariance], *np.abs(np.subtract(after, before)))
    return changes


def check_invariances(one, function):
    for invariance, change in largest_changes(one, function).items():
        if invariance in one.invariances:
            assert change <= 1e-8, f"{one.name} changes by {change:.1e} under {invariance}, which its card excludes"
        else:
            assert change >= 1e-3, f"{one.name} changes by {change:.1e} only under {invariance}: the card lacks it"


def check_symmetry(one, function):
    gaps = []
    for seed, (n, p, q) in itertools.product(range(3), WIDTHS):
        X, Y = related(np.random.default_rng([seed, n, p]), n, p, q)
        gaps.append(abs(function(X, Y) - function(Y, X)))
    if one.symmetric:
        assert max(gaps) <= 1e-10, f"{one.name} is not symmetric: {max(gaps):.1e}"
    else:
        assert max(gaps) >= 1e-3, f"{one.name} is symmetric to {max(gaps):.1e}: the card lacks it"


def triples(n=24, count=200):
    """Triples of representations, many made to break a false metric: nested, along a line, with copies."""
    for k in range(count):
        rng = np.random.default_rng(k)
        whole = rng.normal(size=(n, 6))
        kind = k % 5
        if kind == 0:
            yield [rng.normal(size=(n, width)) for width in rng.integers(1, 9, size=3)]
        elif kind == 1:
            yield [whole[:, :2], whole, whole[:, 3:]]
        elif kind == 2:
            step = rng.uniform(0.02, 1) * rng.normal(size=whole.shape)
            yield [whole, whole + step, whole + 2 * step]
        elif kind == 3:
            yield [whole[:, [0] * 20 + [1, 2, 3, 4, 5]], whole, whole[:, 1:]]
        else:
            first, last = rng.normal(size=(2, n, 1))
            yield [first, np.hstack([first, rng.uniform(0.1, 1) * last]), last]


def broken_metric(function, distance, count=200):
    """The first sign, in words, that a form of the measure is no metric; empty where none is found."""
    n_undefined = 0
    for k, (a, b, c) in enumerate(triples(count=count)):
        ab, bc, ac = (distance(function(*pair)) for pair in ((a, b), (b, c), (a, c)))
        if np.isnan([ab, bc, ac]).any():  # undefined, as some measures are for a single feature
            n_undefined += 1
            assert n_undefined < count / 2
            continue
        if not ac <= ab + bc + 1e-7:
            return f"triangle {k}: {ac:.6f} > {ab:.6f} + {bc:.6f}"
        if not min(ab, bc, ac) >= 0:
            return f"triangle {k}: a negative distance"
        if k < 5 and not abs(distance(function(b, b))) <= 1e-6:
            return f"triangle {k}: {distance(function(b, b)):.6f} from a representation to itself"
    return ""


def check_metric(one, function):
    if one.metric:
        broken = broken_metric(function, DISTANCES[one.distance])
        assert not broken, f"{one.name} is no metric as {one.distance}: {broken}"
    elif one.symmetric:
        for form, distance in DISTANCES.items():
            assert broken_metric(function, distance), f"{one.name} looks like a metric as {form}: the card lacks it"


def independent(rng, n, p, q):
    """Two representations without anything in common, each of a few latent dimensions."""
    return [rng.normal(size=(n, 8)) @ rng.normal(size=(8, w)) + 0.3 * rng.normal(size=(n, w)) for w in (p, q)]


def values_by_chance(one, function, draws=24):
    n, values = 48, []
    for k in range(draws):
        rng = np.random.default_rng([5, k])
        X, Y = independent(rng, n, 30, 30)
        values.append(function(X, Y if one.kind == "pair" else np.arange(n) % 3))
    assert np.isfinite(values).all(), f"{one.name} is undefined on independent representations"
    return n, np.array(values)


def check_bias(one, function):
    n, values = values_by_chance(one, function)
    above = (values.mean() - one.chance(n)) * (1 if one.larger_is_more_similar else -1)
    error = values.std(ddof=1) / np.sqrt(len(values))
    if one.biased:
        assert above > max(6 * error, 0.05), f"{one.name} is {above:.3f} (SE {error:.3f}) from chance: not biased"
    else:
        assert abs(above) <= 4 * error, f"{one.name} is {above:.3f} (SE {error:.3f}) from chance: biased"


def check_direction(one, function):
    """The value goes one way, step by step, as less and less of what Y represents is left in X.

    It is the code that changes: noise of single features is what some measures correct for.
    """
    ladder = []
    for angle in np.linspace(0, np.pi / 2, 5):
        steps = []
        for k in range(6):
            rng = np.random.default_rng([7, k])
            code, other = rng.normal(size=(2, 80, 8))
            X, Y, rest = ((z @ rng.normal(size=(8, 16))) for z in (code, code, other))
            if one.kind == "separability":
                Y = np.arange(80) % 2
                X = rest + 6 * np.where(Y, 1, -1)[:, None] * rng.normal(size=16)
            X = np.cos(angle) * X + np.sin(angle) * rest + 0.1 * rng.normal(size=(80, 16))
            steps.append(function(X, Y))
        ladder.append(np.mean(steps))
    falls = -np.diff(ladder) * (1 if one.larger_is_more_similar else -1)
    assert falls.sum() > 0.1, f"{one.name} goes {np.round(ladder, 3)} as the codes part: the card has it the wrong way"
    assert (falls > 0).all(), f"{one.name} goes up and down as the codes part: {np.round(ladder, 3)}"


def hard_cases():
    """Pairs at the ends of a range: alike, opposed, of one feature, of rank one, repeated, huge and tiny."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(24, 5))
    ramp = np.arange(24.0)[:, None]
    yield X, X
    yield X, -X
    yield ramp, -ramp
    yield ramp, ramp**2
    yield X, np.outer(ramp, np.ones(4))
    yield np.repeat(X[:6], 4, axis=0), np.repeat(X[6:12], 4, axis=0)
    yield np.eye(24), rng.normal(size=(24, 3))
    yield np.eye(24), np.eye(24)[::-1]
    yield np.hstack([X, np.ones((24, 2))]), rng.normal(size=(24, 60))
    yield rng.normal(size=(24, 300)), rng.normal(size=(24, 200))
    yield 1e-90 * X, 1e90 * rng.normal(size=(24, 4))
    yield X + 1e6, X[:, :2] - 1e6
    yield np.exp(4 * rng.normal(size=(24, 5))), rng.integers(0, 2, size=(24, 6))
    for k in range(40):
        yield rng.normal(size=(24, k % 7 + 1)), rng.normal(size=(24, k % 5 + 1))


def check_range(one, function):
    for k, (X, Y) in enumerate(hard_cases()):
        value = function(X, Y if one.kind == "pair" else np.arange(24) % 3)
        assert np.isnan(value) or one.low <= value <= one.high, f"{one.name} is {value} on case {k}, out of its range"
        assert not np.isinf(value), f"{one.name} is infinite on case {k}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", [check_invariances, check_bias, check_direction, check_range])
def test_a_measure_keeps_what_its_card_promises(name, check):
    check(card(name), value_of(name))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("check", [check_symmetry, check_metric])
def test_a_measure_of_pairs_keeps_what_its_card_promises(name, check):
    check(card(name), value_of(name))


@pytest.mark.parametrize("name", PAIRS)
def test_invariances_hold_with_more_features_than_stimuli(name):
    one = card(name)
    rng = np.random.default_rng(0)
    X, Y = related(rng, *WIDE)
    before = value_of(name)(X, Y)
    for invariance in one.invariances - {"affine"}:
        after = [value_of(name)(changed(X, invariance, rng), Y), value_of(name)(X, changed(Y, invariance, rng))]
        np.testing.assert_allclose(after, before, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_biased_measure_offers_instead_is_not_biased(name):
    one = card(name)
    if not one.biased:
        assert one.unbiased_form == ""
    elif one.unbiased_form != "cross-validate":
        assert not card(one.unbiased_form).biased
    else:
        held_out = []
        for k in range(24):
            X, Y = independent(np.random.default_rng([6, k]), 96, 12, 12)
            fitted = estimator(name).fit(X[:48], Y[:48])
            held_out.append(fitted.score(X[48:], Y[48:]) - one.chance(48))
        assert abs(np.mean(held_out)) <= 4 * np.std(held_out, ddof=1) / np.sqrt(24)


@pytest.mark.parametrize("name", NAMES)
def test_estimators_exist_where_the_card_says_so(name):
    one = card(name)
    if not one.fits:
        with pytest.raises(ValueError, match="fits nothing.*cca"):
            estimator(name)
        return
    X, Y = inputs(one, np.random.default_rng(2), 60, 6, 5)
    model = clone(estimator(name))
    assert model.fit(X[:40], Y[:40]) is model
    held_out = model.score(X[40:], Y[40:])
    # Held-out stimuli of a common code are told apart from stimuli in a wrong order.
    shuffled = model.score(X[40:], np.roll(Y[40:], 7, axis=0))
    assert held_out > shuffled if one.larger_is_more_similar else held_out < shuffled
    with pytest.raises(ValueError, match=r"fit|feature"):
        model.score(X[40:, :-1], Y[40:])


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_every_kind_give_one_value_and_stay_as_they_were(name):
    one = card(name)
    X, Y = inputs(one, np.random.default_rng(1), 24, 6, 4)
    if one.kind == "pair":
        X, Y = X.astype(np.float32).astype(np.float64), Y.astype(np.float32).astype(np.float64)
    kept = X.copy(), Y.copy()
    value = similarity(name, X, Y)
    assert isinstance(value, float)
    assert similarity(name, X, Y) == value  # random ones, too: they have a seed
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(Y, kept[1])
    others = [(X.reshape(24, 2, 3), Y), (pd.DataFrame(X), Y), (torch.tensor(X, requires_grad=True), Y)]
    if one.kind == "pair":
        others.append((X.astype(np.float32), torch.tensor(Y, dtype=torch.float32)))
    np.testing.assert_allclose([similarity(name, *other) for other in others], value, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(name):
    one = card(name)
    X, Y = inputs(one, np.random.default_rng(1), 24, 6, 4)
    gaps = X.copy()
    gaps[2, :3] = np.nan
    gaps[5, 0] = np.inf
    with pytest.raises(ValueError, match=r"X holds 4 values of 144 that are NaN or infinite"):
        similarity(name, gaps, Y)
    with pytest.raises(ValueError, match=r"X has 24 stimuli and Y 23; both must hold the same stimuli"):
        similarity(name, X, Y[1:])
    few = one.fewest_stimuli - 1
    with pytest.raises(ValueError, match=rf"{few} stimuli; '{name}' needs at least {few + 1}"):
        similarity(name, X[:few], Y[:few])
    with pytest.raises(ValueError, match=r"X has shape \(24,\); expected \(stimulus, feature\)"):
        similarity(name, X[:, 0], Y)
    with pytest.raises(ValueError, match=r"X has shape \(24, 0\)"):
        similarity(name, X[:, :0], Y)
    with pytest.raises(ValueError, match="X has dtype complex128; expected real numbers"):
        similarity(name, X + 1j, Y)
    with pytest.raises(ValueError, match=f"option='nonesuch' is unknown.*options of '{name}'"):
        similarity(name, X, Y, nonesuch=1)
    with pytest.warns(UserWarning, match=f"'{name}' is NaN: X does not vary over stimuli") as caught:
        assert np.isnan(similarity(name, np.ones_like(X), Y))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    if one.kind == "separability":
        with pytest.raises(ValueError, match=r"Y has shape \(24, 2\); expected one class label per stimulus"):
            similarity(name, X, np.zeros((24, 2)))
        with pytest.raises(ValueError, match="single class"):
            similarity(name, X, np.zeros(24))
        with pytest.raises(ValueError, match="1 missing labels"):
            similarity(name, X, np.array(["a", None, *"b" * 22], dtype=object))


@pytest.mark.parametrize("name", NAMES)
def test_the_fewest_stimuli_of_the_card_are_enough(name):
    one = card(name)
    n = one.fewest_stimuli
    X, Y = inputs(one, np.random.default_rng(4), n, 2, 2)
    value = value_of(name)(X, Y)
    assert np.isnan(value) or one.low <= value <= one.high


def test_names_are_found_and_misspelt_ones_are_answered():
    table = measures()
    assert list(table.index) == NAMES
    assert table.loc["cka", "biased"]
    assert table.loc["cka", "unbiased_form"] == "cka-debiased"
    assert "orthogonal" in table.loc["cka", "invariances"]
    assert card("cka").name == "cka"
    with pytest.raises(ValueError, match="name='cka-debaised' is unknown; did you mean 'cka-debiased'"):
        similarity("cka-debaised", np.eye(4), np.eye(4))
    with pytest.raises(ValueError, match="option='statistics' is unknown; did you mean 'statistic'"):
        estimator("cca", statistics="mean")


def plain_card(**changes):
    flags = {
        "name": "mine", "title": "", "formula": "", "citation": "", "low": -1.0, "high": 1.0,
        "larger_is_more_similar": True, "symmetric": True, "metric": False, "biased": False,
    }  # fmt: skip
    return SimilarityCard(**{**flags, **changes})


def test_a_card_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="invariances='orthogonl' is unknown; did you mean 'orthogonal'"):
        plain_card(invariances=frozenset({"orthogonl"}))
    with pytest.raises(ValueError, match="kind='pairs'"):
        plain_card(kind="pairs")
    with pytest.raises(ValueError, match="metric=True and distance=''"):
        plain_card(metric=True)
    with pytest.raises(ValueError, match="metric=False and distance='arccos'"):
        plain_card(distance="arccos")
    with pytest.raises(ValueError, match="biased=True and unbiased_form=''"):
        plain_card(biased=True)
    with pytest.raises(ValueError, match="offers cross-validation, but fits is False"):
        plain_card(biased=True, unbiased_form="cross-validate")
    with pytest.raises(ValueError, match="fits=True, the estimator is None"):
        measure(plain_card(fits=True))
    with pytest.raises(ValueError, match="'cka' is registered twice"):
        measure(plain_card(name="cka"))(lambda X, Y: 0.0)
    assert plain_card(invariances=frozenset({"affine"})).invariances == set(INVARIANCES) - {"pattern-scaling"}


def pearson_of_rdms(X, Y):
    rdms = [1 - np.corrcoef(side)[np.triu_indices(len(side), 1)] for side in (X, Y)]
    return np.corrcoef(*rdms)[0, 1]


def cosine_after_rotation(X, Y):
    width = max(X.shape[1], Y.shape[1])
    X, Y = (np.pad(side, ((0, 0), (0, width - side.shape[1]))) for side in (X, Y))
    U, _, Vt = np.linalg.svd(X.T @ Y)
    turned = X @ U @ Vt
    norms = np.linalg.norm(turned, axis=1) * np.linalg.norm(Y, axis=1)
    return float(((turned * Y).sum(1) / norms).mean())


def linear_cka(X, Y):
    return value_of("cka")(X, Y)


CKA_FLAGS = {
    "metric": True, "distance": "arccos", "biased": True, "unbiased_form": "cka-debiased",
    "invariances": frozenset({"orthogonal", "isotropic-scaling", "translation"}),
}  # fmt: skip
RIGHT = frozenset({"permutation", "pattern-scaling", "shift-all"})


@pytest.mark.parametrize(
    ("check", "function", "flags", "says"),
    [
        # Only a shift that all features share leaves correlation distances alone.
        (check_invariances, pearson_of_rdms, {"invariances": RIGHT | {"translation"}}, "under translation"),
        (check_invariances, pearson_of_rdms, {"invariances": RIGHT - {"shift-all"}}, "the card lacks it"),
        # A cosine stays what it is at another scale, also after a rotation.
        (check_invariances, cosine_after_rotation, {"invariances": frozenset({"orthogonal"})}, "only under isotropic"),
        (check_invariances, linear_cka, {**CKA_FLAGS, "invariances": frozenset({"affine"})}, "which its card excludes"),
        (check_symmetry, linear_cka, {**CKA_FLAGS, "symmetric": False}, "the card lacks it"),
        (check_symmetry, lambda X, Y: X.std() - Y.std(), {}, "not symmetric"),
        (check_metric, linear_cka, {**CKA_FLAGS, "distance": "one-minus"}, "no metric as one-minus"),
        (check_metric, linear_cka, {"metric": False}, "looks like a metric as arccos"),
        (check_bias, linear_cka, {"biased": False}, "biased"),
        (check_bias, lambda X, Y: value_of("cka-debiased")(X, Y), CKA_FLAGS, "not biased"),
        (check_direction, linear_cka, {**CKA_FLAGS, "larger_is_more_similar": False}, "the wrong way"),
        (check_range, linear_cka, {**CKA_FLAGS, "high": 0.9}, "out of its range"),
    ],
)
def test_the_checks_see_a_false_flag(check, function, flags, says):
    with pytest.raises(AssertionError, match=says):
        check(plain_card(**flags), function)


def test_the_checks_pass_right_flags():
    check_invariances(plain_card(invariances=RIGHT), pearson_of_rdms)
    check_invariances(plain_card(invariances=frozenset({"orthogonal", "isotropic-scaling"})), cosine_after_rotation)
    check_symmetry(plain_card(), linear_cka)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_depends_on_the_order_of_stimuli_says_so(name):
    """Folds and draws by row: the card says what to average over, and the options have it."""
    X, Y = inputs(card(name), np.random.default_rng(0), 40, 6, 5)
    order = np.random.default_rng(1).permutation(40)
    depends = not np.isclose(similarity(name, X, Y), similarity(name, X[order], Y[order]), rtol=0, atol=1e-8)
    assert depends == ("depends on the order of the stimuli: average over seed" in card(name).formula)
    if depends:
        assert similarity(name, X, Y, seed=0) != similarity(name, X, Y, seed=1)


def test_only_a_metric_is_called_one():
    called = [name for name in NAMES if re.search(r"\bmetric\b", card(name).title.lower())]
    assert all(card(name).metric for name in called)


def test_two_sides_without_variance_are_named_together():
    with pytest.warns(UserWarning, match="'cka' is NaN: X and Y do not vary over stimuli"):
        assert np.isnan(similarity("cka", np.ones((5, 2)), np.ones((5, 3))))


def test_centring_leaves_nothing_of_constant_features_and_keeps_digits_at_an_offset():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3))
    held = centred(np.hstack([X + 1e9, np.full((50, 1), 0.1)]))
    assert (held[:, 3] == 0).all()
    assert np.abs(held.mean(0)).max() < 1e-15
    np.testing.assert_allclose(held[:, :3], centred((X + 1e9) - 1e9), atol=1e-14)


def test_undefined_points_at_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="'mine' is NaN: because") as caught:
        assert np.isnan(undefined("mine", "because"))
    assert caught[0].filename == __file__
