"""Sessions on disk against the same arithmetic in memory, and how much of the files is read for it."""

import gzip
import pickle
import warnings

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest

from neuralign.datasets import Recording, nifti
from neuralign.datasets.lazy import Session, SessionStack, stack_hemispheres

SHAPE = (5, 4, 3)  # x, y, z: no two alike
N_TRIALS = (6, 4, 7)


def volumes_of(seed=0, shape=SHAPE):
    """int16 betas (x, y, z, trial) of every session."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-3000, 3000, (*shape, n)).astype(np.int16) for n in N_TRIALS]


def write_hdf5(path, values, chunks=None):
    """As NSD: axes reversed, so that h5py sees (trial, z, y, x)."""
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=values.T, chunks=chunks)
    return Session(path, "hdf5", "betas", values.shape[3], "reversed")


def write_nifti(path, values, slope=None):
    image = nibabel.Nifti1Image(values, np.diag([1.8, 1.8, 1.8, 1]))
    if slope is not None:
        image.header.set_slope_inter(*slope)
    image.to_filename(path)
    return Session(path, "nifti", "", values.shape[3], "volume")


def write_mgh(path, values):
    nibabel.MGHImage(values.astype(">f4"), np.eye(4)).to_filename(path)
    return Session(path, "mgh", "", values.shape[3], "volume")


def write_npy(path, values, order="C"):
    flat = values.reshape(-1, values.shape[3], order="F").T
    np.save(path, np.asarray(flat, order=order))
    return Session(path, "npy", "", values.shape[3], "rows")


WRITERS = {
    "contiguous": lambda folder, i, v: write_hdf5(folder / f"{i}.h5", v),
    "by voxel": lambda folder, i, v: write_hdf5(folder / f"{i}.hdf5", v, (v.shape[3], 1, 1, 1)),
    "by trial": lambda folder, i, v: write_hdf5(folder / f"{i}.hdf", v, (2, 2, 2, 2)),
    "nii.gz": lambda folder, i, v: write_nifti(folder / f"{i}.nii.gz", v),
    "nii": lambda folder, i, v: write_nifti(folder / f"{i}.nii", v),
    "mgh": lambda folder, i, v: write_mgh(folder / f"{i}.mgh", v),
    "mgz": lambda folder, i, v: write_mgh(folder / f"{i}.mgz", v),
    "npy": lambda folder, i, v: write_npy(folder / f"{i}.npy", v),
    "npy by unit": lambda folder, i, v: write_npy(folder / f"{i}f.npy", v, "F"),
}


def expected_of(all_values, columns, zscore, takes=None):
    """Plain arithmetic: the whole array in float64, z-scored session by session."""
    parts = []
    for number, values in enumerate(all_values):
        flat = values.astype(np.float64).reshape(-1, values.shape[3], order="F").T[:, columns] / 300
        if zscore:
            flat = (flat - flat.mean(axis=0)) / flat.std(axis=0)
        parts.append(flat if takes is None or takes[number] is None else flat[takes[number]])
    return np.concatenate(parts)


@pytest.fixture
def columns():
    mask = np.random.default_rng(5).random(SHAPE) < 0.4
    return np.flatnonzero(mask.ravel(order="F"))


@pytest.mark.parametrize("zscore", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_stack_is_its_sessions_one_after_another(tmp_path, columns, kind, zscore):
    values = volumes_of()
    sessions = [WRITERS[kind](tmp_path, i, v) for i, v in enumerate(values)]
    stack = SessionStack(sessions, columns, 1 / 300, zscore)
    expected = expected_of(values, columns, zscore)
    assert stack.shape == expected.shape and stack.dtype == np.float32
    assert stack.row_groups == (slice(0, 6), slice(6, 10), slice(10, 17))
    assert stack.cheap_units == (kind in ("by voxel", "npy by unit"))
    np.testing.assert_allclose(np.asarray(stack), expected, atol=2e-6)
    rng = np.random.default_rng(1)
    for _ in range(20):
        rows, units = (slice(*sorted(rng.integers(0, n + 1, 2))) for n in expected.shape)
        np.testing.assert_allclose(stack[rows, units], expected[rows, units], atol=2e-6)
    np.testing.assert_allclose(stack[3:8], expected[3:8], atol=2e-6)
    again = pickle.loads(pickle.dumps(stack))
    np.testing.assert_array_equal(again[2:, 3:9], stack[2:, 3:9])
    for rows, units, block in stack.session_blocks(5):
        np.testing.assert_array_equal(block, stack[rows, units])


def test_hdf5_and_nifti_of_one_volume_are_one(tmp_path, columns):
    """A C-ordered index of (z, y, x) is an F-ordered index of (x, y, z); a transposed mask is not."""
    values = volumes_of()
    stacks = [
        SessionStack([WRITERS[kind](tmp_path, i, v) for i, v in enumerate(values)], columns, 1 / 300)[:, :]
        for kind in ("by voxel", "nii.gz")
    ]
    np.testing.assert_array_equal(*stacks)
    x, y, z = np.unravel_index(columns, SHAPE, order="F")
    np.testing.assert_allclose(stacks[0][:6], values[0][x, y, z].T / 300, rtol=1e-6)
    cube = [v[:3, :3, :3] for v in values]
    mask = np.random.default_rng(2).random((3, 3, 3)) < 0.5
    session = write_hdf5(tmp_path / "cube.h5", cube[0])
    right, wrong = (np.flatnonzero(one.ravel(order="F")) for one in (mask, mask.T))
    assert not np.array_equal(right, wrong)
    np.testing.assert_array_equal(SessionStack([session], right)[:, :], cube[0][mask.T.nonzero()[::-1]].T)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(SessionStack([session], wrong)[:, :], cube[0][mask.T.nonzero()[::-1]].T)


def test_trials_are_taken_after_z_scoring(tmp_path, columns):
    values = volumes_of()
    takes = [np.array([0, 3]), None, np.array([1, 2, 6])]
    sessions = []
    for i, (v, take) in enumerate(zip(values, takes, strict=True)):
        one = WRITERS["by voxel"](tmp_path, i, v)
        sessions.append(Session(one.path, one.kind, one.dataset, one.n_rows, one.order, take))
    stack = SessionStack(sessions, columns, 1 / 300, zscore=True)
    assert stack.row_groups == (slice(0, 2), slice(2, 6), slice(6, 9))
    np.testing.assert_allclose(stack[:, :], expected_of(values, columns, True, takes), atol=2e-6)
    rows = np.array([0, 5, 8, 2])
    recording = Recording(stack, pd.DataFrame({"stimulus": list("abcdefghi")}))
    np.testing.assert_array_equal(recording.read([4, 1], rows), stack[:, :][rows][:, [4, 1]])


@pytest.mark.parametrize("kind", ["by voxel", "contiguous", "by trial"])
def test_hdf5_is_read_along_its_chunks(tmp_path, monkeypatch, kind):
    """Boxes of voxels where chunks span the trials, else runs of trials; and no more than is needed."""
    shape, n = (20, 20, 20), 30
    values = np.random.default_rng(0).integers(-99, 99, (*shape, n)).astype(np.int16)
    chunks = {"by voxel": (n, 1, 1, 1), "contiguous": None, "by trial": (5, 20, 20, 20)}[kind]
    session = write_hdf5(tmp_path / "one.h5", values, chunks)
    columns = np.arange(3 * 400 + 27, 3 * 400 + 27 + 120)  # six lines of plane 3
    asked = []
    original = h5py.Dataset.__getitem__

    def spy(self, key, *rest):
        out = original(self, key, *rest)
        asked.append(out.nbytes)
        return out

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    monkeypatch.setattr("neuralign.datasets.lazy._SLAB", 20_000)
    stack = SessionStack([session], columns)
    found = stack[:, :]
    own = n * len(columns) * 2
    assert max(asked) <= 20_000
    if kind == "by voxel":
        assert sum(asked) <= 1.4 * own
    elif kind == "contiguous":
        assert sum(asked) == n * 400 * 2  # the one plane
    else:
        assert sum(asked) == n * 400 * 2 and len(asked) == 2
    np.testing.assert_array_equal(found, values.reshape(-1, n, order="F").T[:, columns])


def test_far_columns_are_not_bridged(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(-99, 99, (20, 20, 20, 10)).astype(np.int16)
    session = write_hdf5(tmp_path / "one.h5", values, (10, 1, 1, 1))
    columns = np.array([0, 1, 399, 400, 4000, 4021, 7999])
    total = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda s, k: total.append(original(s, k)) or total[-1])
    found = SessionStack([session], columns)[:, :]
    np.testing.assert_array_equal(found, values.reshape(-1, 10, order="F").T[:, columns])
    assert sum(one.nbytes for one in total) <= 3 * found.size * 2


def test_hdf5_of_two_axes_is_read_by_runs_of_units(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(10, 5000)).astype(np.float32)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file.create_dataset("betas", data=values, chunks=(10, 1))
    columns = np.array([0, 1, 5, 2000, 2001, 4999])
    stack = SessionStack([Session(tmp_path / "one.h5", "hdf5", "betas", 10, "rows")], columns)
    asked = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, key: asked.append(key) or original(self, key))
    np.testing.assert_array_equal(stack[:, :], values[:, columns])
    assert [one[1] for one in asked] == [slice(0, 6), slice(2000, 2002), slice(4999, 5000)]
    monkeypatch.setattr("neuralign.datasets.lazy._SLAB", 10 * 4 * 2)
    whole = SessionStack(stack.sessions, np.arange(5))
    asked.clear()
    np.testing.assert_array_equal(whole[:, :], values[:, :5])
    assert [one[1] for one in asked] == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_a_session_is_read_once_for_all_its_rows(tmp_path, columns, monkeypatch):
    sessions = [WRITERS["nii.gz"](tmp_path, i, v) for i, v in enumerate(volumes_of())]
    stack = SessionStack(sessions, columns)
    opened = []
    original = gzip.open
    monkeypatch.setattr("gzip.open", lambda path, *rest: opened.append(path) or original(path, *rest))
    for row in range(6):
        stack[row : row + 1, :]
    assert len(opened) == 1
    first = stack[0:2, 0:3]
    first[:] = 0  # a copy: what is kept stays as it is
    assert not np.array_equal(stack[0:2, 0:3], first)


def test_constant_units_are_nan_with_one_warning(tmp_path):
    values = volumes_of()
    values[1][2, 1, 1] = 7
    values[1][0, 0, 0] = 0
    sessions = [WRITERS["by voxel"](tmp_path, i, v) for i, v in enumerate(values)]
    everywhere = np.arange(np.prod(SHAPE))
    stack = SessionStack(sessions, everywhere, 1 / 300, zscore=True)
    with pytest.warns(UserWarning, match="2 of 60 units do not vary in this session") as caught:
        found = stack[:, :]
    assert len(caught) == 1
    flat = np.ravel_multi_index(([2, 0], [1, 0], [1, 0]), SHAPE, order="F")
    gone = np.zeros((17, 60), bool)
    gone[6:10, flat] = True
    np.testing.assert_array_equal(np.isnan(found), gone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack[:, 0:30]


def test_a_constant_is_found_whatever_its_last_digit(tmp_path):
    values = np.full((1, 1, 2, 7), np.float32(0.1))
    values[0, 0, 1] = np.arange(7)
    stack = SessionStack([write_mgh(tmp_path / "one.mgh", values)], np.array([0, 1]), zscore=True)
    with pytest.warns(UserWarning, match="1 of 2"):
        assert np.isnan(stack[:, :]).all(axis=0).tolist() == [True, False]


def test_missing_vertices_stay_missing(tmp_path):
    values = volumes_of()[0].astype(np.float32)
    values[1, 1, 1] = np.nan
    values[2, 2, 2, 3] = np.nan  # one trial
    stack = SessionStack([write_mgh(tmp_path / "lh.mgh", values)], np.arange(60), zscore=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # nibabel leaves files to the collector
        found = stack[:, :]
    flat = values.reshape(60, -1, order="F").T.astype(float)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (flat - np.nanmean(flat, 0)) / np.nanstd(flat, 0)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.isnan(found).sum() == len(flat) + 1 and found.dtype.isnative


def test_hemispheres_side_by_side(tmp_path, columns):
    left, right = (
        SessionStack([WRITERS["mgh"](tmp_path, f"{h}{i}", v) for i, v in enumerate(volumes_of(seed))], columns)
        for seed, h in enumerate("lr")
    )
    both = stack_hemispheres(left, right)
    expected = np.concatenate([left[:, :], right[:, :]], axis=1)
    assert both.shape == expected.shape and both.row_groups == left.row_groups
    for units in (slice(0, 3), slice(3, both.shape[1]), slice(both.shape[1] // 2, None), slice(None)):
        np.testing.assert_array_equal(both[2:9, units], expected[2:9, units])
    short = SessionStack(right.sessions[:2], columns)
    with pytest.raises(ValueError, match=r"left has sessions of \[6, 4, 7\] rows, right of \[6, 4\]"):
        stack_hemispheres(left, short)


def test_stacks_that_do_not_fit(tmp_path, columns):
    values = volumes_of()
    sessions = [WRITERS["contiguous"](tmp_path, i, v) for i, v in enumerate(values)]
    other = write_hdf5(tmp_path / "other.h5", values[0][:4])
    with pytest.raises(ValueError, match=r"other.h5 has trials of shape \(3, 4, 4\); those of .*0.h5 have \(3, 4, 5\)"):
        SessionStack([*sessions, other], columns)
    with pytest.raises(ValueError, match="holds 6 trials; expected 7"):
        SessionStack([Session(sessions[0].path, "hdf5", "betas", 7, "reversed")], columns)
    with pytest.raises(ValueError, match="columns runs to 60"):
        SessionStack(sessions, np.array([3, 60]))
    for bad in ([], [3, 2], [2, 2], [-1, 2]):
        with pytest.raises(ValueError, match="ascending"):
            SessionStack(sessions, np.array(bad, int))
    with pytest.raises(ValueError, match="dataset='beta' is unknown"):
        SessionStack([Session(sessions[0].path, "hdf5", "beta", 6, "reversed")], columns)
    with pytest.raises(ValueError, match="take runs"):
        Session(sessions[0].path, "hdf5", "betas", 6, "reversed", np.array([2, 6]))
    with pytest.raises(ValueError, match="ascending positions"):
        Session(sessions[0].path, "hdf5", "betas", 6, "reversed", np.array([2, 1]))
    with pytest.raises(ValueError, match="order='volume'"):
        Session(sessions[0].path, "hdf5", "betas", 6, "volume")
    with pytest.raises(FileNotFoundError):
        SessionStack([Session(tmp_path / "none.h5", "hdf5", "betas", 6, "reversed")], columns)
    stack = SessionStack(sessions, columns)
    for key in (3, np.array([1, 2]), (slice(0, 4, 2), slice(None)), (slice(None),) * 3):
        with pytest.raises(ValueError, match="slices"):
            stack[key]
    assert stack[5:3, :].shape == (0, stack.shape[1])


def test_a_large_array_is_not_taken_into_memory_by_accident(tmp_path, columns, monkeypatch):
    stack = SessionStack([WRITERS["npy"](tmp_path, i, v) for i, v in enumerate(volumes_of())], columns)
    monkeypatch.setattr("neuralign.datasets.lazy._LARGEST_ARRAY", 100)
    with pytest.raises(ValueError, match="unit_blocks"):
        np.asarray(stack)


def test_the_fingerprint_changes_with_the_files_and_what_is_asked(tmp_path, columns):
    import os

    sessions = [WRITERS["npy"](tmp_path, i, v) for i, v in enumerate(volumes_of())]
    stack = SessionStack(sessions, columns)
    first = stack.fingerprint()
    assert first == SessionStack(sessions, columns).fingerprint() == pickle.loads(pickle.dumps(stack)).fingerprint()
    others = [
        SessionStack(sessions[:2], columns),
        SessionStack(sessions, columns[1:]),
        SessionStack(sessions, columns, 1 / 300),
        SessionStack(sessions, columns, zscore=True),
    ]
    os.utime(sessions[0].path, ns=(1, 1))
    assert len({first, *(one.fingerprint() for one in others), stack.fingerprint()}) == 6


# ---------------------------------------------------------------------------------------------- volumes


def test_headers_and_masks(tmp_path):
    mask = np.random.default_rng(0).integers(-1, 4, SHAPE).astype(np.int8)
    nibabel.Nifti1Image(mask, np.diag([2.0, 3.0, 4.0, 1])).to_filename(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(nifti.mask(tmp_path / "mask.nii.gz"), mask)
    assert nifti.mask(tmp_path / "mask.nii.gz").dtype == np.int8
    about = nifti.header(tmp_path / "mask.nii.gz")
    assert about.shape == SHAPE and about.n == 1 and not about.is_scaled and about.affine[2, 2] == 4
    nibabel.Nifti1Image(mask[..., None], np.eye(4)).to_filename(tmp_path / "four.nii")
    np.testing.assert_array_equal(nifti.mask(tmp_path / "four.nii"), mask)
    maps = np.where(mask > 0, mask, np.nan).astype(np.float32)
    nibabel.MGHImage(maps, np.eye(4)).to_filename(tmp_path / "map.mgz")
    np.testing.assert_array_equal(nifti.mask(tmp_path / "map.mgz"), maps)
    write_nifti(tmp_path / "many.nii", volumes_of()[0])
    with pytest.raises(ValueError, match="holds 6 volumes"):
        nifti.mask(tmp_path / "many.nii")


def test_scaling_is_that_of_the_file(tmp_path, columns):
    values = volumes_of()[0]
    image = nibabel.Nifti1Image(values / 7 + 1, np.eye(4))
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "scaled.nii.gz")
    about = nifti.header(tmp_path / "scaled.nii.gz")
    assert about.is_scaled and about.dtype == np.int16
    expected = np.asarray(nibabel.load(tmp_path / "scaled.nii.gz").dataobj).reshape(-1, 6, order="F").T[:, columns]
    stack = SessionStack([Session(tmp_path / "scaled.nii.gz", "nifti", "", 6, "volume")], columns, 2.0)
    np.testing.assert_allclose(stack[:, :], 2 * expected, rtol=1e-6)


def test_volumes_come_in_the_order_asked_for(tmp_path):
    values = volumes_of()[0]
    for kind in ("nii", "nii.gz", "mgh", "mgz"):
        session = WRITERS[kind](tmp_path, 0, values)
        wanted = np.array([17, 3, 59, 3])
        x, y, z = np.unravel_index(wanted, SHAPE, order="F")
        np.testing.assert_array_equal(np.stack(list(nifti.volumes(session.path, wanted))), values[x, y, z].T)
        with pytest.raises(ValueError, match="voxels 0 to 59"):
            next(nifti.volumes(session.path, np.array([60])))


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "mgh", "mgz"])
def test_volumes_cut_off(tmp_path, kind):
    session = WRITERS[kind](tmp_path, 0, volumes_of()[0])
    content = session.path.read_bytes()
    session.path.write_bytes(content[: int(len(content) * 0.6)])
    where = (
        r"cut off or damaged .*volume [34] of 6: \d+ of \d+ bytes" if kind in ("nii", "mgh") else "cut off or damaged"
    )
    with pytest.raises(ValueError, match=where):
        list(nifti.volumes(session.path))
    session.path.write_bytes(content[:40])
    with pytest.raises(ValueError, match="cut off or damaged"):
        nifti.header(session.path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="by its name"):
        nifti.header(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError):
        nifti.header(tmp_path / "none.nii")
