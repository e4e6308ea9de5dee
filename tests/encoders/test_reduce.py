"""Reductions: each beside its definition, on every kind of output."""

import dataclasses

import numpy as np
import pytest
import torch

from neuralign.encoders.features.reduce import Reduction, parse_reduction

SHAPES = [(7,), (10, 6), (9, 6), (6, 10, 12), (6, 4, 9, 8)]
STRINGS = ["mean", "max", "cls", "mean-patch", "last", "grid:2", "time:3", "sketch:40", "sketch-raw:40", "sparse:40"]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bins(n, k):
    """Stretches of n steps that are averaged into k: they overlap by a step where k does not divide n."""
    return [slice(n * i // k, -(-n * (i + 1) // k)) for i in range(k)]


def test_everything_is_kept_with_channels_last():
    maps, clips = drawn(2, 6, 4, 5), drawn(2, 6, 3, 4, 5)
    everything = Reduction()
    np.testing.assert_array_equal(everything(maps), np.moveaxis(maps.numpy(), 1, -1).reshape(2, 20, 6))
    np.testing.assert_array_equal(everything(clips), np.moveaxis(clips.numpy(), 1, -1).reshape(2, 60, 6))
    np.testing.assert_array_equal(everything(drawn(2, 5, 3)), drawn(2, 5, 3))
    np.testing.assert_array_equal(everything(drawn(2, 2, 2, 2, 2, 2)), drawn(2, 32))
    last = maps.to(memory_format=torch.channels_last)
    assert torch.equal(everything(last), everything(maps)) and everything(last).data_ptr() == last.data_ptr()


@pytest.mark.parametrize("kind, of", [("mean", np.mean), ("max", np.max)])
def test_over_all_places_or_tokens(kind, of):
    reduction = parse_reduction(kind)
    for shape, axes in {(2, 5, 3): 1, (2, 3, 4, 5): (2, 3), (2, 3, 4, 5, 6): (2, 3, 4)}.items():
        output = drawn(*shape)
        np.testing.assert_allclose(reduction(output), of(output.numpy(), axis=axes), atol=1e-6)
    np.testing.assert_array_equal(reduction(drawn(2, 5)), drawn(2, 5))


@pytest.mark.parametrize("special, n, first", [(1, 17, 1), (1, 16, 0), (5, 21, 5), (5, 16, 0), (0, 16, 0), (1, 13, 1)])
def test_mean_of_patches_leaves_special_tokens_out(special, n, first):
    tokens = drawn(2, n, 3)
    reduction = Reduction("mean-patch", special=special)  # 13 tokens are no square: words behind a class token
    np.testing.assert_allclose(reduction(tokens), tokens[:, first:].mean(1), atol=1e-6)
    maps = drawn(2, 3, 4, 4)
    np.testing.assert_allclose(reduction(maps), maps.mean((2, 3)), atol=1e-6)


def test_mean_of_patches_of_a_video():
    tokens = drawn(2, 1 + 2 * 9, 3)
    reduction = Reduction("mean-patch", frames=2)
    np.testing.assert_allclose(reduction(tokens), tokens[:, 1:].mean(1), atol=1e-6)
    np.testing.assert_allclose(reduction(tokens[:, 1:]), tokens[:, 1:].mean(1), atol=1e-6)


def test_one_token():
    tokens = drawn(2, 5, 3)
    assert torch.equal(parse_reduction("cls")(tokens), tokens[:, 0])
    assert torch.equal(parse_reduction("last")(tokens), tokens[:, -1])
    with pytest.raises(ValueError, match="this model has none"):
        Reduction("cls", special=0)(tokens)
    for kind in ("cls", "last"):
        with pytest.raises(ValueError, match=f"reduce='{kind}' needs tokens; this layer is a map of channels"):
            parse_reduction(kind)(drawn(2, 3, 4, 4))


@pytest.mark.parametrize("grid", [1, 2, 3, 4, 7])
def test_grid_over_maps_and_square_tokens(grid):
    maps = drawn(2, 3, 7, 9)
    truth = [[maps[:, :, r, c].mean((2, 3)) for c in bins(9, grid)] for r in bins(7, grid)]
    truth = torch.stack([cell for row in truth for cell in row], 1) if grid < 7 else Reduction()(maps)
    np.testing.assert_allclose(parse_reduction(grid)(maps), truth, atol=1e-6)
    assert torch.equal(parse_reduction(f"grid:{grid}")(maps), parse_reduction(grid)(maps))
    square = drawn(2, 3, 7, 7)
    tokens = square.flatten(2).transpose(1, 2)
    for special in (0, 1, 5):
        behind = torch.cat([torch.full((2, special, 3), 1e6), tokens], 1)
        np.testing.assert_allclose(
            Reduction("grid", grid, special=special)(behind), parse_reduction(grid)(square), atol=1e-5
        )


def test_time_of_sound_and_of_clips():
    steps = drawn(2, 11, 3)
    truth = torch.stack([steps[:, part].mean(1) for part in bins(11, 4)], 1)
    np.testing.assert_allclose(parse_reduction("time:4")(steps), truth, atol=1e-6)
    assert torch.equal(parse_reduction("time:11")(steps), steps) and torch.equal(
        parse_reduction("time:20")(steps), steps
    )
    clips = drawn(2, 3, 6, 4, 4)  # places stay
    truth = torch.stack([clips[:, :, part].mean(2) for part in bins(6, 2)], 2)
    np.testing.assert_allclose(parse_reduction("time:2")(clips), Reduction()(truth), atol=1e-6)
    with pytest.raises(ValueError, match="time=2 needs time; this layer gives maps of images"):
        parse_reduction("time:2")(drawn(2, 3, 4, 4))


@pytest.mark.parametrize("reduce, cells", [("grid:2", (6, 2, 2)), ("time:3", (3, 4, 4)), ("time:3+grid:2", (3, 2, 2))])
@pytest.mark.parametrize("special", [0, 1])
def test_grid_and_time_of_tokens_of_a_video(reduce, cells, special):
    clips = drawn(2, 5, 6, 4, 4)
    t, g, _ = cells
    truth = clips.unflatten(2, (t, 6 // t)).mean(3).unflatten(3, (g, 4 // g)).mean(4).unflatten(4, (g, 4 // g)).mean(5)
    truth = Reduction()(truth)
    reduction = parse_reduction(reduce)
    np.testing.assert_allclose(reduction(clips), truth, atol=1e-6)
    tokens = torch.cat([torch.full((2, special, 5), 1e6), Reduction()(clips)], 1)
    np.testing.assert_allclose(dataclasses.replace(reduction, frames=6)(tokens), truth, atol=1e-6)


def test_tokens_without_the_form_that_is_asked_for():
    with pytest.raises(ValueError, match=r"form a square.*found shape \(stimulus, token, feature\) = \(2, 7, 3\)"):
        parse_reduction(2)(drawn(2, 7, 3))
    with pytest.raises(ValueError, match="tokens that form 4 squares"):
        dataclasses.replace(parse_reduction("time:2"), frames=4)(drawn(2, 4 * 9 + 2, 3))
    with pytest.raises(ValueError, match="needs maps over time, or tokens of known frames"):
        parse_reduction("grid:2+time:2")(drawn(2, 16, 3))


@pytest.mark.parametrize("kind", ["mean", "mean-patch", "grid:2", "time:2"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_halves_are_accumulated_in_float32(kind, dtype):
    tokens = (drawn(2, 2500, 3) + 60).to(dtype)  # their sum is beyond what float16 can hold
    found = parse_reduction(kind)(tokens)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, parse_reduction(kind)(tokens.double()), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduce", [None, 2, *STRINGS, "grid:2+time:3"])
def test_shape_is_known_before_anything_runs(reduce, shape):
    reduction = parse_reduction(reduce)
    try:
        truth = tuple(reduction(drawn(3, *shape)).shape[1:])
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:20]):
            reduction.row_shape(shape)
    else:
        assert reduction.row_shape(shape) == truth


def test_maps_that_remain():
    for shape, truth in {(6, 10, 12): (10, 12), (10, 6): None, (6,): None}.items():
        assert Reduction().map_shape(shape) == truth
    for shape, truth in {
        (6, 10, 12): (4, 4),
        (6, 3, 3): (3, 3),
        (50, 6): (4, 4),
        (10, 6): (3, 3),
        (7, 6): None,
    }.items():
        assert parse_reduction(4).map_shape(shape) == truth
    assert Reduction("grid", 4, special=5).map_shape((54, 6)) == (4, 4)
    for reduce in ("mean", "max", "sketch:40", "time:2"):
        assert parse_reduction(reduce).map_shape((6, 10, 12)) is None


def test_what_enters_the_key():
    different = [None, 2, 3, "grid:2+time:3", "time:4", "sketch:41", *STRINGS[:5], *STRINGS[6:]]
    specs = [tuple(sorted(parse_reduction(reduce).spec().items())) for reduce in different]
    assert len(set(specs)) == len(specs)
    assert parse_reduction("sketch:4").spec() != Reduction("sketch", size=4, seed=1).spec()
    assert Reduction("mean", special=5).spec() == Reduction("mean").spec()  # it does not read the setting
    assert Reduction("grid", 3, special=5).spec() != Reduction("grid", 3).spec()


UNKNOWN = [
    "meen",
    "sketch",
    "sketch:0",
    "time:-1",
    "time:2.5",
    "grid:2+sketch:3",
    "grid:2+grid:3",
    "",
    "mean:3",
]


@pytest.mark.parametrize("reduce", [*UNKNOWN, True, 2.5, ["mean"]])
def test_what_no_reduction_is_called(reduce):
    with pytest.raises(ValueError, match=r"reduce=.* is unknown.*Known: 'none', 'mean'.*'sketch:K'"):
        parse_reduction(reduce)


def test_everything_is_kept_by_two_names():
    assert parse_reduction("none") == parse_reduction(None) == Reduction()


def test_bad_settings():
    with pytest.raises(ValueError, match="kind='mea' is unknown; did you mean"):
        Reduction("mea")
    with pytest.raises(ValueError, match="size=0: reduce='sketch' needs at least 1"):
        Reduction("sketch")
    for given in ({"kind": "mean", "size": 3}, {"kind": "time", "time": 2, "grid": 2}, {"kind": "none", "time": 1}):
        with pytest.raises(ValueError, match="is not read by reduce="):
            Reduction(**given)
    with pytest.raises(ValueError, match="time=-2"):
        Reduction("grid", 3, time=-2)
    with pytest.raises(ValueError, match="seed=-1"):
        Reduction("sketch", size=3, seed=-1)
    with pytest.raises(ValueError, match="reduce=0: a grid has at least 1 cell"):
        parse_reduction(0)
    assert parse_reduction(Reduction("max")) == Reduction("max")
