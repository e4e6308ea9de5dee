"""Tokens in half precision on disk."""

import json

import numpy as np
import pytest

from neuralign.encoders.spatial.store import TokenStore


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((20, 6, 5)).astype(np.float32)


def batches(values, size=6, start=0):
    for i in range(start, len(values), size):
        yield values[i : i + size]


def test_what_is_written_is_read(values, tmp_path):
    ids = [f"image-{i}" for i in range(20)]
    TokenStore.build(tmp_path / "s", batches(values), 20, (2, 3), stimulus_ids=ids, layer="block3", key="abc")
    store = TokenStore.open(tmp_path / "s")
    assert store.dtype == np.float16
    assert store.shape == (20, 6, 5)
    assert (len(store), store.ndim, store.grid, store.layer, store.key) == (20, 3, (2, 3), "block3", "abc")
    assert store.stimulus_ids == tuple(ids)
    assert isinstance(store.array, np.memmap)
    assert np.array_equal(np.asarray(store), values.astype(np.float16))
    assert np.asarray(store, dtype=np.float64).dtype == np.float64
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["tokens.json", "tokens.npy"]
    assert "20 x 6 x 5 float16" in repr(store)


class Stopped(Exception):
    pass


def interrupted(values, after):
    yield from batches(values[:after])
    raise Stopped


@pytest.mark.parametrize("callable_batches", [False, True])
def test_an_interrupted_build_goes_on_where_it_stopped(values, callable_batches, tmp_path):
    folder = tmp_path / "s"
    with pytest.raises(Stopped):
        TokenStore.build(folder, interrupted(values, 12), 20, (2, 3))
    with pytest.raises(FileNotFoundError, match="a build was interrupted"):
        TokenStore.open(folder)
    changed = values.copy()
    changed[:12] = 99.0  # which must not be written again
    asked = []

    def from_start(start):
        asked.append(start)
        return batches(changed, 5, start)

    store = TokenStore.build(folder, from_start if callable_batches else batches(changed, 5), 20, (2, 3))
    assert np.array_equal(np.asarray(store), values.astype(np.float16))
    assert asked == ([12] if callable_batches else [])


def test_a_whole_store_is_opened_again_without_a_batch(values, tmp_path):
    def never(start):
        raise AssertionError

    TokenStore.build(tmp_path / "s", batches(values), 20, (2, 3), key="a")
    assert len(TokenStore.build(tmp_path / "s", never, 20, (2, 3), key="a")) == 20
    with pytest.raises(ValueError, match="holds tokens with key='a', and key='b' is to be built"):
        TokenStore.build(tmp_path / "s", never, 20, (2, 3), key="b")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"at": 7e4}, "1 stimuli hold values that float16 cannot, stimulus 13 the first .*float32"),
        ({"at": np.nan}, "stimulus 13 the first .*leave the stimulus out"),
        ({"n": 21}, "batches hold 20 stimuli after the first 0; expected n=21 in all"),
        ({"n": 19}, "more than n=19"),
        ({"grid": (2, 2)}, r"shape \(6, 6, 5\); expected .* with 4 tokens"),
        ({"dtype": "float61"}, "did you mean 'float16'"),
        ({"stimulus_ids": ["a"]}, "names 1 stimuli; expected n=20"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, values, tmp_path):
    if "at" in change:
        values[13, 2, 3] = change.pop("at")
    arguments = {"n": 20, "grid": (2, 3)} | change
    with pytest.raises(ValueError, match=message):
        TokenStore.build(tmp_path / "s", batches(values), **arguments)


def test_single_precision_takes_large_values(values, tmp_path):
    values[13, 2, 3] = 7e4
    store = TokenStore.build(tmp_path / "s", batches(values), 20, None, dtype="float32")
    assert np.array_equal(np.asarray(store), values)
    assert store.grid is None


def test_batches_of_another_shape_are_refused(values, tmp_path):
    with pytest.raises(ValueError, match=r"stimuli from 6 on have \(6, 4\) .*, those before \(6, 5\)"):
        TokenStore.build(tmp_path / "s", iter([values[:6], values[6:, :, :4]]), 20, (2, 3))


def test_a_broken_store_is_refused(values, tmp_path):
    store = TokenStore.build(tmp_path / "s", batches(values), 20, (2, 3))
    table = json.loads((store.folder / "tokens.json").read_text())
    (store.folder / "tokens.json").write_text(json.dumps(table | {"n": 30}))
    with pytest.raises(ValueError, match="says 30 stimuli: build anew"):
        TokenStore.open(store.folder)
    with pytest.raises(FileNotFoundError, match="no tokens in"):
        TokenStore.open(tmp_path)
