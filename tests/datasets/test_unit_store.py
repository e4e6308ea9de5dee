"""The store by units: what is written comes back, group by group, and nothing else is taken for it."""

import json
import os
import pickle
import shutil
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuralign.datasets import Recording, StimulusSet
from neuralign.datasets.convert import convert, plan_conversion
from neuralign.datasets.lazy import Session, SessionStack
from neuralign.datasets.unit_store import UnitStore, UnitStoreWriter, damaged_groups, open_store

N_ROWS, N_UNITS = 40, 700  # two whole blocks and a narrow one


@pytest.fixture
def recording():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(N_ROWS, N_UNITS)).astype(np.float32)
    responses[3, 10:20] = np.nan
    pixels = rng.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    stimuli = StimulusSet.from_images(pixels, [f"s{i}" for i in range(20)], pd.DataFrame({"coco": np.arange(20)}))
    presentations = pd.DataFrame(
        {
            "stimulus": [f"s{i % 20}" for i in range(N_ROWS)],
            "session": np.arange(N_ROWS) // 10,
            "tags": [["a"]] * N_ROWS,
        }
    )
    units = pd.DataFrame({"region": ["V1"] * 350 + [None] * 350, "ncsnr": rng.random(N_UNITS)})
    return Recording(responses, presentations, units, stimuli=stimuli, name="nsd", info={"licence": "research only"})


@pytest.mark.parametrize("dtype, tolerance", [("float16", 5e-4), ("float32", 0)])
def test_a_converted_recording_is_the_same(recording, tmp_path, dtype, tolerance):
    found = convert(recording, tmp_path / "one.units", dtype)
    assert isinstance(found.responses, UnitStore) and found.responses.dtype == np.dtype(dtype)
    assert found.responses.chunks == (N_ROWS, 256)
    assert (tmp_path / "one.units" / "responses.bin").stat().st_size == N_ROWS * N_UNITS * np.dtype(dtype).itemsize
    np.testing.assert_allclose(found.read(), recording.read(), rtol=tolerance, atol=tolerance)
    pd.testing.assert_frame_equal(found.presentations.astype(object), recording.presentations.astype(object))
    pd.testing.assert_frame_equal(found.units.astype(object), recording.units.astype(object))
    assert found.name == "nsd" and found.info == recording.info
    assert found.stimuli.content_hash == recording.stimuli.content_hash
    pd.testing.assert_frame_equal(found.stimuli.table, recording.stimuli.table)
    again = pickle.loads(pickle.dumps(open_store(tmp_path / "one.units")))
    np.testing.assert_array_equal(again.read([699, 0, 300], [5, 2]), found.read()[[5, 2]][:, [699, 0, 300]])
    part = found.select(session=2, region="V1")
    np.testing.assert_allclose(part.read(), recording.select(session=2, region="V1").read(), atol=1e-3)
    assert damaged_groups(tmp_path / "one.units") == []


def test_a_block_of_units_is_one_read(recording, tmp_path, monkeypatch):
    found = convert(recording, tmp_path / "one.units", "float32")
    lengths = []
    original = os.preadv
    monkeypatch.setattr(
        "os.preadv", lambda handle, views, at: lengths.append(len(views[0])) or original(handle, views, at)
    )
    for block, values in found.unit_blocks(found._block_size):
        np.testing.assert_array_equal(values, recording.read(block))
    assert sum(lengths) == N_ROWS * N_UNITS * 4 and len(lengths) == 3
    lengths.clear()
    found.responses[10:12, 256:512]
    assert lengths == [2 * 256 * 4]


@pytest.mark.parametrize("max_memory", [1, 2**30])
def test_panels_and_groups_lie_where_they_belong(recording, tmp_path, max_memory):
    """Sessions of different lengths in panels of one block, and all at once: the same bytes."""
    np.save(tmp_path / "a.npy", recording.read()[:15])
    np.save(tmp_path / "b.npy", recording.read()[15:])
    sessions = [Session(tmp_path / f"{one}.npy", "npy", "", n, "rows") for one, n in (("a", 15), ("b", 25))]
    lazy = recording._with(responses=SessionStack(sessions, np.arange(N_UNITS)))
    found = convert(lazy, tmp_path / "one.units", "float32", max_memory)
    np.testing.assert_array_equal(found.read(), recording.read())
    raw = np.fromfile(tmp_path / "one.units" / "responses.bin", "<f4")
    np.testing.assert_array_equal(raw[: N_ROWS * 256].reshape(N_ROWS, 256), recording.read()[:, :256])
    np.testing.assert_array_equal(raw[N_ROWS * 512 :].reshape(N_ROWS, 188), recording.read()[:, 512:])
    assert len(json.loads((tmp_path / "one.units" / "done.json").read_text())) == 2


def test_from_int16_sessions_to_means_of_z_scores(tmp_path):
    """The whole way of a set such as NSD, against plain arithmetic on the whole array."""
    rng = np.random.default_rng(2)
    shape, n_trials = (7, 9, 11), (12, 9, 15)  # x, y, z
    columns = np.flatnonzero((rng.random(shape) < 0.6).ravel(order="F"))
    sessions, parts = [], []
    for number, n in enumerate(n_trials):
        betas = rng.integers(-900, 900, (n, *shape[::-1])).astype(np.int16)
        path = tmp_path / f"betas_session{number + 1:02d}.hdf5"
        with h5py.File(path, "w") as file:
            file.create_dataset("betas", data=betas, chunks=(n, 1, 1, 1))
        sessions.append(Session(path, "hdf5", "betas", n, "reversed"))
        flat = betas.reshape(n, -1)[:, columns] / 300
        parts.append((flat - flat.mean(axis=0)) / flat.std(axis=0))
    shown = rng.permutation(np.repeat(np.arange(12), 3))
    lazy = Recording(SessionStack(sessions, columns, 1 / 300, zscore=True), {"stimulus": shown})
    store = convert(lazy, tmp_path / "one.units", max_memory=1)
    np.testing.assert_allclose(store.read(), np.concatenate(parts), atol=2e-3)
    expected = pd.DataFrame(np.concatenate(parts)).groupby(shown, sort=False).mean()
    for recording, tolerance in ((lazy, 1e-6), (store, 2e-3)):
        mean = recording.average_repeats()
        assert [int(one) for one in mean.presentations["stimulus"]] == list(expected.index)
        np.testing.assert_allclose(mean.read(), expected, atol=tolerance)
    os.utime(sessions[1].path, ns=(1, 1))
    with pytest.raises(ValueError, match="another source"):
        convert(lazy, tmp_path / "one.units")


def test_the_size_is_told_first(recording, tmp_path, monkeypatch):
    plan = plan_conversion(recording, tmp_path / "one.units", "float16")
    assert plan.bytes == N_ROWS * N_UNITS * 2 and plan.groups_done == 0 and not (tmp_path / "one.units").exists()
    assert plan.text().startswith("40 presentations x 700 units as float16: 56.0 kB; ")
    assert plan.text().endswith("0 of 1 sessions are there")
    convert(recording, tmp_path / "one.units")
    plan = plan_conversion(recording, tmp_path / "one.units")
    assert plan.text().endswith("1 of 1 sessions are there") and plan.bytes_done >= plan.bytes
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 30_000))
    with pytest.raises(ValueError, match=r"no room for .*two.units: it takes 56.0 kB.* 30.0 kB are free. Free 26.0 kB"):
        convert(recording, tmp_path / "two.units")
    assert not (tmp_path / "two.units").exists()
    convert(recording, tmp_path / "one.units")  # is there already
    for options, message in (({"dtype": "int16"}, "dtype='int16' is unknown"),):
        with pytest.raises(ValueError, match=message):
            plan_conversion(recording, tmp_path / "x", **options)
    timed = Recording(np.zeros((2, 3, 2)), {"stimulus": ["a", "b"]}, times=[0, 1])
    with pytest.raises(ValueError, match="average_time"):
        convert(timed, tmp_path / "x.units")


def test_float16_holds_what_it_can(recording, tmp_path):
    big = recording.read().copy()
    big[39, 650] = 70_000
    big[0, 0] = np.inf
    with pytest.raises(ValueError, match=r'responses hold 70000, which float16 cannot hold.*dtype="float32"'):
        convert(recording._with(responses=big), tmp_path / "one.units")
    with pytest.raises(ValueError, match="is not finished: 0 of 1"):
        open_store(tmp_path / "one.units")
    found = convert(recording._with(responses=big), tmp_path / "two.units", "float32")
    assert found.read()[39, 650] == 70_000 and np.isposinf(found.read()[0, 0])


def test_another_source_is_refused(recording, tmp_path):
    convert(recording, tmp_path / "one.units")
    other = recording._with(responses=recording.read() + 1)
    with pytest.raises(ValueError, match=r"was begun from another source: [0-9a-f]+, now [0-9a-f]+"):
        convert(other, tmp_path / "one.units")
    renamed = recording._with(presentations=recording.presentations.assign(session=0))
    with pytest.raises(ValueError, match="another source"):
        convert(renamed, tmp_path / "one.units")
    with pytest.raises(ValueError, match="another dtype: <f2, now <f4"):
        convert(recording, tmp_path / "one.units", "float32")
    with pytest.raises(ValueError, match="another shape"):
        convert(recording.select(session=1), tmp_path / "one.units")


def test_a_folder_of_other_things_is_left_alone(recording, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \('notes.txt'\)"):
        convert(recording, tmp_path)
    with pytest.raises(FileNotFoundError, match="create it"):
        convert(recording, tmp_path / "none" / "one.units")
    with pytest.raises(FileNotFoundError, match="no converted dataset"):
        open_store(tmp_path)


def test_two_writers_at_once(tmp_path):
    arguments = (tmp_path / "one.units", (4, 3), "float32", [slice(0, 4)], "f")
    with UnitStoreWriter(*arguments), pytest.raises(ValueError, match="another process is writing"):
        UnitStoreWriter(*arguments)
    with UnitStoreWriter(*arguments) as writer:
        assert writer.todo == [0]
        with pytest.raises(ValueError, match="do not follow"):
            writer.write(0, slice(1, 3), np.zeros((4, 2)))
        with pytest.raises(ValueError, match="0 of 3 units"):
            writer.finish(0)


def test_damage_is_found(recording, tmp_path):
    folder = tmp_path / "one.units"
    with UnitStoreWriter(folder, (40, 700), "float32", [slice(0, 25), slice(25, 40)], "f") as writer:
        for group, rows in enumerate(writer.groups):
            writer.write(group, slice(0, 512), recording.read()[rows, :512])
            writer.write(group, slice(512, 700), recording.read()[rows, 512:])
            writer.finish(group)
        writer.write_tables(recording)
    assert damaged_groups(folder) == []
    with (folder / "responses.bin").open("r+b") as file:
        file.seek(4 * (256 * 30 + 7))  # row 30 of the first block
        file.write(b"\x01")
    assert damaged_groups(folder) == [1]
    with (folder / "responses.bin").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="has 1000 bytes; expected 112000"):
        open_store(folder)
    for content in ("{", "[]", '{"format": "other"}', '{"format": "neuralign-units-1"}'):
        (folder / "store.json").write_text(content)
        with pytest.raises(ValueError, match=r"store.json"):
            open_store(folder)


def stimulus_sets(folder):
    pixels = np.random.default_rng(3).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    with h5py.File(folder / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = pixels
    (folder / "images").mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i, one in enumerate(pixels):
            Image.fromarray(one).save(folder / "images" / f"i{i}.png")
            archive.write(folder / "images" / f"i{i}.png", f"images/i{i}.png")
    bricks = StimulusSet.from_hdf5(folder / "nsd_stimuli.hdf5", "imgBrick", table=pd.DataFrame({"n": np.arange(8)}))
    return {
        "hdf5": bricks[[5, 2]],
        "folder": StimulusSet.from_folder(folder / "images")[[5, 2]],
        "zip": StimulusSet.from_zip(folder / "images.zip")[[5, 2]],
    }


@pytest.mark.parametrize("kind", ["hdf5", "folder", "zip"])
def test_stimuli_in_files_are_not_copied(tmp_path, kind):
    (tmp_path / "data").mkdir()
    stimuli = stimulus_sets(tmp_path / "data")[kind]
    recording = Recording(np.eye(2), {"stimulus": list(stimuli)}, stimuli=stimuli)
    found = convert(recording, tmp_path / "one.units").stimuli
    assert found.ids == stimuli.ids and found.content_hash == stimuli.content_hash
    pd.testing.assert_frame_equal(found.table, stimuli.table)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="files of the stimuli are gone.*root="):
        assert open_store(tmp_path / "one.units").stimuli is None
    assert open_store(tmp_path / "one.units", root=tmp_path / "moved").stimuli.content_hash == stimuli.content_hash
