"""Averaging repeats of responses that stay on disk: the same means, in a bounded part of the memory."""

import os
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest

from neuralign.datasets import Recording
from neuralign.datasets.convert import convert
from neuralign.datasets.lazy import Session, SessionStack
from neuralign.datasets.unit_store import UnitStore, open_store

N_TRIALS = (30, 20, 25, 30)
N_UNITS = 600


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(sum(N_TRIALS), N_UNITS)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[:, 3] = np.nan
    return values


@pytest.fixture
def presentations():
    rng = np.random.default_rng(1)
    shown = rng.permutation(np.repeat([f"s{i:02d}" for i in range(35)], 3))  # also twice within a session
    return pd.DataFrame({"stimulus": shown, "session": np.repeat(range(4), N_TRIALS), "coco": [s[1:] for s in shown]})


@pytest.fixture
def sessions(tmp_path, values):
    found = []
    for number, part in enumerate(np.split(values, np.cumsum(N_TRIALS)[:-1])):
        path = tmp_path / f"session{number}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("betas", data=part, chunks=(len(part), 1))
        found.append(Session(path, "hdf5", "betas", len(part), "rows"))
    return found


def means_of(values, presentations):
    """By pandas, in float64."""
    table = pd.DataFrame(values.astype(np.float64)).groupby(presentations["stimulus"].to_numpy(), sort=False)
    counts = np.isfinite(values)
    n = pd.DataFrame(counts).groupby(presentations["stimulus"].to_numpy(), sort=False).sum().max(axis=1)
    return table.mean(), n


@pytest.mark.parametrize("max_memory", [2**31, 50_000, 1])
@pytest.mark.parametrize("to", [False, True])
def test_means_of_sessions_are_those_of_pandas(tmp_path, sessions, values, presentations, max_memory, to):
    expected, n = means_of(values, presentations)
    recording = Recording(SessionStack(sessions, np.arange(N_UNITS)), presentations)
    if not to and max_memory < 2**31:
        with pytest.raises(ValueError, match=r"the mean takes 0.0 GB and max_memory .*to=<folder>"):
            recording.average_repeats(max_memory=max_memory)
        return
    mean = recording.average_repeats(tmp_path / "mean.units" if to else None, max_memory)
    assert isinstance(mean.responses, UnitStore) == to
    assert list(mean.presentations["stimulus"]) == list(expected.index)
    np.testing.assert_allclose(mean.read(), expected.to_numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(mean.presentations["n_repeats"], n)
    assert list(mean.presentations.columns) == ["stimulus", "repeat", "coco", "n_repeats"]


def test_a_store_is_averaged_by_its_blocks(tmp_path, sessions, values, presentations):
    recording = Recording(SessionStack(sessions, np.arange(N_UNITS)), presentations)
    in_memory = Recording(values, presentations).average_repeats()
    store = convert(recording, tmp_path / "one.units", "float32")
    for mean in (store.average_repeats(), store.average_repeats(to=tmp_path / "mean.units")):
        np.testing.assert_array_equal(mean.read(), in_memory.read())
        pd.testing.assert_frame_equal(
            mean.presentations.astype(object), in_memory.presentations.astype(object), check_index_type=False
        )
    again = store.average_repeats(to=tmp_path / "mean.units")  # is there already
    np.testing.assert_array_equal(again.read(), in_memory.read())
    with pytest.raises(ValueError, match="another source"):
        store._with(presentations=presentations[::-1]).average_repeats(to=tmp_path / "mean.units")


def test_silent_stimuli_are_left_out_of_a_store(tmp_path, values, presentations):
    values[presentations["stimulus"] == "s07"] = np.nan
    recording = Recording(values, presentations)
    with pytest.warns(UserWarning, match="1 of 35 stimuli have no finite response") as caught:
        mean = recording.average_repeats(to=tmp_path / "mean.units")
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.warns(UserWarning, match="1 of 35"):
        expected = recording.average_repeats()
    assert mean.n_presentations == 34 and "s07" not in set(mean.presentations["stimulus"])
    np.testing.assert_array_equal(mean.read(), expected.read())
    np.testing.assert_array_equal(
        open_store(tmp_path / "mean.units").read([5, 2], [33, 4]), expected.read([5, 2], [33, 4])
    )


def test_halves_of_sessions_are_those_of_arrays(sessions, values, presentations):
    lazy = Recording(SessionStack(sessions, np.arange(N_UNITS)), presentations)
    plain = Recording(values, presentations)
    for one, other in zip(lazy.split_halves(seed=3), plain.split_halves(seed=3), strict=True):
        np.testing.assert_allclose(one.read(), other.read(), rtol=1e-6)
        pd.testing.assert_frame_equal(one.presentations, other.presentations)
    with pytest.raises(ValueError, match="max_memory"):
        lazy.split_halves(seed=3, max_memory=1000)


def test_weights_of_means_are_summed_over_sessions(sessions, values, presentations):
    weights = np.arange(len(values)) % 3 + 1.0
    table = presentations.assign(n_repeats=weights)
    lazy = Recording(SessionStack(sessions, np.arange(N_UNITS)), table).average_repeats()
    plain = Recording(values, table).average_repeats()
    np.testing.assert_array_equal(lazy.presentations["n_repeats"], plain.presentations["n_repeats"])


def test_files_that_are_read_many_times_are_worth_a_warning(tmp_path, values, presentations):
    sessions = []
    for number, part in enumerate(np.split(values, np.cumsum(N_TRIALS)[:-1])):
        np.save(tmp_path / f"{number}.npy", part)
        sessions.append(Session(tmp_path / f"{number}.npy", "npy", "", len(part), "rows"))
    recording = Recording(SessionStack(sessions, np.arange(N_UNITS)), presentations)
    with pytest.warns(UserWarning, match=r"read \d+ times, .* convert the recording first") as caught:
        recording.average_repeats(to=tmp_path / "mean.units", max_memory=200_000)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recording.average_repeats()


# ---------------------------------------------------------------------------------------------- memory

STORE = """
import resource, sys
import numpy as np
from neuralign.datasets import Recording
from neuralign.datasets.averaging import average_repeats
from neuralign.datasets.convert import convert
from neuralign.datasets.lazy import Session, SessionStack
from neuralign.datasets.unit_store import UnitStore, open_store

def shown(n_sessions, n_trials):
    '''Every image three times, in an order that scatters it over sessions.'''
    n = n_sessions * n_trials
    return [f"i{i:05d}" for i in np.random.default_rng(0).permutation(np.arange(n) % (n // 3))]

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kind, folder, out, n_sessions, n_trials = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
if kind == "store":
    responses = UnitStore(folder)
else:
    from pathlib import Path
    paths = sorted(Path(folder).glob("*.npy"))
    responses = SessionStack([Session(p, "npy", "", n_trials, "rows") for p in paths], np.arange(int(sys.argv[6])))
mean = Recording(responses, {"stimulus": shown(n_sessions, n_trials)}).average_repeats(out, int(sys.argv[7]))
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(*arguments):
    """Peak of the memory of a process of its own, before and after, in bytes."""
    found = subprocess.run(
        [sys.executable, "-c", STORE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return [int(one) * 1024 for one in found.stdout.split()]


def planted(folder, n_sessions, n_trials, n_units, blocks):
    """A store of zeros that takes no room, with numbers in some blocks; returns these."""
    from neuralign.datasets.unit_store import UnitStoreWriter

    n = n_sessions * n_trials
    groups = [slice(start, start + n_trials) for start in range(0, n, n_trials)]
    with UnitStoreWriter(folder, (n, n_units), "float16", groups, "planted"):
        pass
    (folder / "done.json").write_text("{" + ", ".join(f'"{i}": ""' for i in range(n_sessions)) + "}")
    rng = np.random.default_rng(1)
    written = {}
    with (folder / "responses.bin").open("r+b") as file:
        for block in blocks:
            width = min(256, n_units - block * 256)
            written[block] = rng.normal(size=(n, width)).astype(np.float16)
            file.seek(block * 256 * n * 2)
            file.write(written[block].tobytes())
    return written


def assert_means(out, written, n_sessions, n_trials):
    n = n_sessions * n_trials
    shown = np.random.default_rng(0).permutation(np.arange(n) % (n // 3))
    mean = open_store(out)
    order = [int(one[1:]) for one in mean.presentations["stimulus"]]
    assert mean.n_presentations == n // 3 and set(mean.presentations["n_repeats"]) == {3}
    for block, numbers in written.items():
        expected = np.zeros((n // 3, numbers.shape[1]))
        np.add.at(expected, shown, numbers.astype(np.float64) / 3)
        units = slice(block * 256, block * 256 + numbers.shape[1])
        np.testing.assert_allclose(mean.read(units), expected[order], atol=1e-6)
    empty = next(block for block in range(mean.n_units // 256) if block not in written)
    assert not np.nan_to_num(mean.read(slice(empty * 256, empty * 256 + 256))).any()


def test_averaging_a_store_takes_little_memory(tmp_path):
    """3000 trials of 30,000 voxels are 360 MB in single precision, 720 MB in double; a store is read block by block."""
    written = planted(tmp_path / "one.units", 40, 75, 30_000, (0, 57, 117))
    before, after = peak("store", tmp_path / "one.units", tmp_path / "mean.units", 40, 75, 30_000, 2**26)
    assert after - before < 250e6
    assert_means(tmp_path / "mean.units", written, 40, 75)


def test_averaging_sessions_takes_the_memory_it_may(tmp_path):
    """36 million values are 144 MB in single precision, 288 MB in double; sums take the 40 MB they may."""
    numbers = np.zeros((40, 75, 12_000), np.float16)
    numbers[:, :, :256] = np.random.default_rng(1).normal(size=(40, 75, 256))
    (tmp_path / "sessions").mkdir()
    for i, one in enumerate(numbers):
        np.save(tmp_path / "sessions" / f"{i:02d}.npy", one)
    before, after = peak("sessions", tmp_path / "sessions", tmp_path / "mean.units", 40, 75, 12_000, 40_000_000)
    assert after - before < 130e6
    assert_means(tmp_path / "mean.units", {0: numbers.reshape(3000, -1)[:, :256]}, 40, 75)


@pytest.mark.slow
def test_averaging_40_sessions_of_300_000_voxels_stays_under_4_gb(tmp_path):
    """NSD at full size: 30,000 trials of 300,000 voxels in half precision are 18 GB, their mean 12 GB."""
    written = planted(tmp_path / "one.units", 40, 750, 300_000, (0, 600, 1171))
    _, after = peak("store", tmp_path / "one.units", tmp_path / "mean.units", 40, 750, 300_000, 2**31)
    assert after < 4e9
    assert_means(tmp_path / "mean.units", written, 40, 750)


@pytest.mark.slow
def test_averaging_40_sessions_that_are_not_converted_stays_under_4_gb(tmp_path):
    """One panel of what 2 GiB allow for 10,000 images; more voxels are more panels, one after another."""
    n_trials, n_units = 750, 9472
    planted_values = np.random.default_rng(1).normal(size=(40 * n_trials, 256)).astype(np.float32)
    (tmp_path / "sessions").mkdir()
    for session in range(40):
        path = tmp_path / "sessions" / f"{session:02d}.npy"
        betas = np.lib.format.open_memmap(path, "w+", np.float32, (n_trials, n_units))
        betas[:, :256] = planted_values[session * n_trials : (session + 1) * n_trials]
        betas[0, 300] = np.nan  # so that every unit is counted for itself
        del betas
    _, after = peak("sessions", tmp_path / "sessions", tmp_path / "mean.units", 40, n_trials, n_units, 2**31)
    assert after < 4e9
    assert_means(tmp_path / "mean.units", {0: planted_values}, 40, n_trials)
