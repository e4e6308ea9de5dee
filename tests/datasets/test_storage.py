import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuralign.datasets import Recording, StimulusSet, storage


def recording(stimuli, depth=(), truth=None, dtype=np.float32):
    n = 2 * len(stimuli)
    responses = (100 * np.random.default_rng(0).normal(size=(n, 7, *depth))).astype(dtype)
    presentations = pd.DataFrame(
        {
            "stimulus": list(stimuli.ids) * 2,
            "session": np.arange(n),
            "good": np.arange(n) % 3 == 0,
            "note": [None, *[f"n{i}" for i in range(n - 1)]],
            "onset": np.linspace(0, 1, n),
        }
    )
    units = pd.DataFrame({"region": pd.Categorical(["V1"] * 4 + ["IT"] * 3), "ncsnr": [np.nan, *range(6)]})
    times = None if not depth else np.linspace(-0.1, 0.3, depth[0])
    return Recording(responses, presentations, units, times, stimuli, "saved", truth, {"licence": "CC0", "year": 2008})


def stimulus_sets(tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"im{i}.jpg")
    table = pd.DataFrame({"category": list("abab"), "face": [True, False, True, True]})
    objects = pd.DataFrame({"stimulus": ["image-00001", "image-00001", "image-00004"], "x": [0.5, 1.0, 2.0]})
    return {
        "array": StimulusSet.from_images(pixels, table=table, objects=objects, name="four"),
        "grey": StimulusSet.from_images(pixels[..., 0]),
        "files": StimulusSet.from_folder(folder),
        "sizes": StimulusSet.from_images([pixels[0], pixels[1, :4]]),
        "sentences": StimulusSet.from_sentences(["A cat.", "Ein Käfer.", ""]),
        "words": StimulusSet.from_words(["a", "b"], [0.1, 0.2], runs=[1, 2]),
        "sounds": StimulusSet.from_sounds([rng.normal(size=50), rng.normal(size=(9, 2))], 16000),
    }


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kind", ["array", "grey", "files", "sizes", "sentences", "words", "sounds"])
def test_round_trip_with_every_kind_of_stimuli(tmp_path, kind, lazy):
    one = recording(stimulus_sets(tmp_path)[kind])
    one.save(tmp_path / "r.h5")
    back = Recording.load(tmp_path / "r.h5", lazy=lazy)
    assert isinstance(back.responses, h5py.Dataset if lazy else np.ndarray)
    np.testing.assert_array_equal(back.read(), one.read())
    assert back.responses.dtype == one.responses.dtype
    pd.testing.assert_frame_equal(back.presentations, one.presentations)
    pd.testing.assert_frame_equal(back.units, one.units.astype({"region": object}), check_dtype=False)
    assert (back.name, back.info) == (one.name, one.info)
    assert back.stimuli.content_hash == one.stimuli.content_hash
    assert back.stimuli.table_hash == one.stimuli.table_hash
    assert (back.stimuli.kind, back.stimuli.name) == (one.stimuli.kind, one.stimuli.name)
    part = back.select(stimulus=one.stimuli.ids[1])
    assert part.stimuli.digests == (one.stimuli.digests[1],)


def test_encoded_images_are_stored_as_they_are(tmp_path):
    stimuli = stimulus_sets(tmp_path)["files"]
    recording(stimuli).save(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        stored = file["stimuli/bytes"][()].tobytes()
    assert stored == b"".join(path.read_bytes() for path in sorted((tmp_path / "images").iterdir()))


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_times_and_other_dtypes(tmp_path, dtype):
    one = recording(stimulus_sets(tmp_path)["array"], (5,), dtype=dtype)
    one.save(tmp_path / "r.h5")
    back = Recording.load(tmp_path / "r.h5")
    np.testing.assert_array_equal(back.times, one.times)
    np.testing.assert_array_equal(back.responses, one.responses)
    assert back.responses.dtype == dtype


def test_lazy_recording_is_averaged_and_saved_from_disk(tmp_path):
    one = recording(stimulus_sets(tmp_path)["array"])
    one.save(tmp_path / "r.h5")
    lazy = Recording.load(tmp_path / "r.h5", lazy=True)
    np.testing.assert_array_equal(lazy.average_repeats().read(), one.average_repeats().read())
    lazy.save(tmp_path / "r.h5")  # onto the very file it is read from
    np.testing.assert_array_equal(Recording.load(tmp_path / "r.h5").read(), one.read())


def test_truth_comes_back_or_is_left_out_with_a_warning(tmp_path):
    stimuli = stimulus_sets(tmp_path)["array"]
    truth = {
        "signal": np.arange(12.0).reshape(4, 3),
        "layer": np.array(["conv1", "conv2"]),
        "fields": pd.DataFrame({"x": [0.1, 0.2], "name": ["a", "b"]}),
        "deep": {"n": 3, "title": "v1"},
    }
    recording(stimuli, truth=truth).save(tmp_path / "r.h5")
    back = Recording.load(tmp_path / "r.h5").truth
    np.testing.assert_array_equal(back["signal"], truth["signal"])
    np.testing.assert_array_equal(back["layer"], truth["layer"])
    pd.testing.assert_frame_equal(back["fields"], truth["fields"])
    assert back["deep"] == truth["deep"]
    with pytest.warns(UserWarning, match="truth"):
        recording(stimuli, truth=object()).save(tmp_path / "r.h5")
    assert Recording.load(tmp_path / "r.h5").truth is None
    with pytest.warns(UserWarning, match=r"deep\.f"):
        recording(stimuli, truth={"a": 1, "deep": {"f": print}}).save(tmp_path / "r.h5")
    assert Recording.load(tmp_path / "r.h5").truth == {"a": 1, "deep": {}}


def test_truncated_foreign_and_absent_files(tmp_path):
    path = tmp_path / "r.h5"
    recording(stimulus_sets(tmp_path)["array"]).save(path)
    whole = path.read_bytes()
    for keep in (len(whole) // 2, 10, 0):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"r\.h5 .*not a whole HDF5 file"):
            Recording.load(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=r"r\.h5 is an HDF5 file of another program"):
        Recording.load(path)
    with storage.new_hdf5(path, "TimeSeries"):
        pass
    with pytest.raises(ValueError, match="holds a TimeSeries .*expected a Recording saved"):
        Recording.load(path)
    with storage.new_hdf5(path, "Recording"):
        pass
    with pytest.raises(ValueError, match="damaged Recording"):
        Recording.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        Recording.load(tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError, match="create it"):
        recording(StimulusSet.from_sentences(["a", "b"])).save(tmp_path / "deep" / "r.h5")


def test_a_failed_save_leaves_the_older_file(tmp_path):
    folder = tmp_path / "images"
    one = recording(stimulus_sets(tmp_path)["files"])
    one.save(tmp_path / "r.h5")
    before = (tmp_path / "r.h5").read_bytes()
    (folder / "im2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="im2"):
        one.save(tmp_path / "r.h5")
    assert (tmp_path / "r.h5").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "r.h5"]


def test_tables_keep_what_their_cells_are(tmp_path):
    table = pd.DataFrame(
        {
            "a/b": [1, 2, 3],
            "flag": [True, False, True],
            "text": ["x", "ü", ""],
            "mixed": [None, 1, "one"],
            "count": pd.array([1, None, 3], dtype="Int64"),
            "tags": [["a"], ["b", "c"], []],
        }
    )
    with h5py.File(tmp_path / "t.h5", "w") as file:
        storage.write_table(file, "table", table)
        storage.write_table(file, "empty", table.iloc[:0])
        back = storage.read_table(file["table"])
        assert len(storage.read_table(file["empty"])) == 0
    assert list(back.columns) == list(table.columns)
    for column in ("a/b", "flag", "text"):
        assert list(back[column]) == list(table[column])
    assert back["a/b"].dtype == np.int64 and back["flag"].dtype == bool
    assert list(back["mixed"]) == [None, 1, "one"]
    assert back["count"].isna().tolist() == [False, True, False] and back["count"].dropna().tolist() == [1, 3]
    assert list(back["tags"]) == [["a"], ["b", "c"], []]


def test_cells_that_are_dates_arrays_or_nothing_json_knows(tmp_path):
    one = recording(StimulusSet.from_sentences(["a", "b"]))
    days = pd.to_datetime(["2020-01-02", None, "2020-01-04", "2020-01-05"])
    cells = pd.Series([np.arange(3), np.ones((2, 2)), {"n": np.int64(3)}, None], dtype=object)
    table = one.presentations.assign(day=days, took=days - days[0], cell=cells)
    one._with(presentations=table, info={"rates": np.arange(3)}).save(tmp_path / "r.h5")
    back = Recording.load(tmp_path / "r.h5")
    pd.testing.assert_series_equal(back.presentations["day"], table["day"])
    pd.testing.assert_series_equal(back.presentations["took"], table["took"])
    assert list(back.presentations["cell"]) == [[0, 1, 2], [[1, 1], [1, 1]], {"n": 3}, None]
    assert back.info == {"rates": [0, 1, 2]}
    with pytest.raises(ValueError, match="column 'cell' holds"):
        one._with(presentations=table.assign(cell=[{(1, 2): 3}] * 4)).save(tmp_path / "r.h5")


@pytest.mark.parametrize(
    ("node", "attribute", "value"),
    [("/", "info", "{"), ("/presentations", "columns", "nothing"), ("/units", "rows", "many"), ("/", "info", 3)],
)
def test_broken_attributes_name_the_file(tmp_path, node, attribute, value):
    recording(StimulusSet.from_sentences(["a", "b"])).save(tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "a") as file:
        file[node].attrs[attribute] = value
    with pytest.raises(ValueError, match=r"r\.h5 holds a damaged Recording"):
        Recording.load(tmp_path / "r.h5")


@pytest.mark.parametrize("kind", ["link", "virtual", "external"])
def test_saved_files_that_point_to_other_files_are_refused(tmp_path, kind):
    one = recording(StimulusSet.from_sentences(["a", "b"]))
    one.save(tmp_path / "r.h5")
    one.save(tmp_path / "other.h5")
    (tmp_path / "raw.bin").write_bytes(one.responses.tobytes())
    with h5py.File(tmp_path / "r.h5", "a") as file:
        del file["responses"]
        if kind == "link":
            file["responses"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "responses")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 7), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "responses", (4, 7))
            file.create_virtual_dataset("responses", layout)
        else:
            file.create_dataset("responses", (4, 7), np.float32, external=[(str(tmp_path / "raw.bin"), 0, 112)])
    for lazy in (False, True):
        with pytest.raises(ValueError, match=r"r\.h5.*(another file|other files)"):
            Recording.load(tmp_path / "r.h5", lazy=lazy)


def test_lazy_recordings_outlive_a_change_of_folder(tmp_path, monkeypatch):
    one = recording(stimulus_sets(tmp_path)["array"])
    one.save(tmp_path / "r.h5")
    monkeypatch.chdir(tmp_path)
    lazy = Recording.load("r.h5", lazy=True)
    monkeypatch.chdir(tmp_path / "images")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy)).read(), one.read())
    assert lazy.stimuli.content_hash == one.stimuli.content_hash
