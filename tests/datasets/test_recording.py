import pickle
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest

from neuralign.datasets import Recording, StimulusSet

IDS = ["b", "a", "d", "c"]


@pytest.fixture
def stimuli():
    pixels = np.random.default_rng(9).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    return StimulusSet.from_images(pixels, IDS)


@pytest.fixture
def recording(stimuli):
    """4 stimuli, 3 repeats in random order, 6 units in 2 regions, ragged NaN."""
    rng = np.random.default_rng(3)
    shown = rng.permutation(np.repeat(IDS, 3))
    responses = rng.normal(size=(12, 6))
    responses[rng.random((12, 6)) < 0.15] = np.nan
    return make(responses, shown, stimuli)


def make(responses, shown, stimuli=None, times=None):
    n, n_units = responses.shape[:2]
    presentations = pd.DataFrame({"stimulus": shown, "session": np.arange(n) // 6, "side": [s < "c" for s in shown]})
    units = pd.DataFrame({"region": ["V1"] * (n_units // 2) + ["V4"] * (n_units - n_units // 2)})
    return Recording(responses, presentations, units, times, stimuli, name="test", info={"licence": "none"})


class Counting:
    """An array on disk that counts what is read from it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, key):
        part = self.array[key]
        self.read += part.size
        return part


def test_tables_are_filled_in_and_inputs_left_alone(stimuli):
    presentations = pd.DataFrame({"stimulus": ["a", "b", "a", "a"]}, index=[5, 6, 7, 8])
    units = pd.DataFrame({"ncsnr": [0.5, 1.0]})
    before = presentations.copy(), units.copy()
    responses = np.zeros((4, 2), np.int16)
    recording = Recording(responses, presentations, units, stimuli=stimuli)
    assert recording.responses is responses
    assert list(recording.presentations["repeat"]) == [0, 0, 1, 2]
    assert list(recording.presentations.index) == [0, 1, 2, 3]
    assert list(recording.units.columns) == ["unit", "subject", "region", "ncsnr"]
    assert list(recording.units["subject"]) == ["1", "1"] and list(recording.units["region"]) == ["all", "all"]
    pd.testing.assert_frame_equal(presentations, before[0])
    pd.testing.assert_frame_equal(units, before[1])
    assert recording.read().dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "times", "n_presentations", "n_units", "words"),
    [
        ((4,), None, 4, 1, "expected \\(presentation, unit\\)"),
        ((4, 2), None, 3, 2, "presentations has 3 rows"),
        ((4, 2), None, 4, 3, "units has 3 rows"),
        ((4, 2, 5), None, 4, 2, "no times"),
        ((4, 2), [0.1], 4, 2, "two axes take none"),
        ((4, 2, 5), [0.1, 0.2], 4, 2, "5 time points"),
        ((4, 2, 2), [0.2, 0.1], 4, 2, "ascending"),
        ((0, 2), None, 0, 2, "nothing is in it"),
    ],
)
def test_contradicting_shapes_are_refused(shape, times, n_presentations, n_units, words):
    with pytest.raises(ValueError, match=words):
        Recording(
            np.zeros(shape),
            pd.DataFrame({"stimulus": ["a"] * n_presentations}),
            pd.DataFrame(index=range(n_units)),
            times,
        )


def test_presentations_of_unknown_stimuli_are_counted(stimuli):
    with pytest.raises(ValueError, match=r"2 of 3 presentations .*stimulus='aa' is unknown; did you mean 'a'"):
        Recording(
            np.zeros((3, 1)), pd.DataFrame({"stimulus": ["a", "aa", "x"]}), pd.DataFrame(index=[0]), stimuli=stimuli
        )
    with pytest.raises(ValueError, match="column 'stimulus'"):
        Recording(np.zeros((1, 1)), pd.DataFrame({"image": ["a"]}), pd.DataFrame(index=[0]))
    with pytest.raises(ValueError, match="1 presentations have no stimulus"):
        Recording(np.zeros((2, 1)), pd.DataFrame({"stimulus": ["a", None]}), pd.DataFrame(index=[0]))


@pytest.mark.parametrize("depth", [(), (3,)])
def test_reading_from_disk_equals_reading_from_memory(tmp_path, depth):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(300, 200, *depth)).astype(np.float32)
    with h5py.File(tmp_path / "r.h5", "w") as file:
        lazy = file.create_dataset("responses", data=array, chunks=(50, 50, *depth))
        n, u = array.shape[:2]
        times = None if not depth else [0, 0.1, 0.2]
        recording = Recording(lazy, pd.DataFrame({"stimulus": range(n)}), pd.DataFrame(index=range(u)), times)
        assert isinstance(recording.responses, h5py.Dataset)
        unsorted = rng.permutation(n)[:40], rng.permutation(u)[:30]
        for rows, columns in (
            unsorted,
            (np.sort(unsorted[0]), slice(10, 20)),
            (slice(None), rng.random(u) < 0.5),
            ([5, 5, 299, 0], [-1, 3]),
            (slice(250, 20, -7), None),
            ([], [1]),
        ):
            r = (
                np.arange(n)
                if rows is None
                else np.arange(n)[rows if len(np.shape(rows)) == 0 or len(rows) else slice(0)]
            )
            c = np.arange(u) if columns is None else np.arange(u)[columns]
            np.testing.assert_array_equal(recording.read(columns, rows), array[np.ix_(r, c)])
        blocks = list(recording.unit_blocks(64))
        assert [block.stop for block, _ in blocks] == [64, 128, 192, 200]
        np.testing.assert_array_equal(np.concatenate([values for _, values in blocks], axis=1), array)
        copy = pickle.loads(pickle.dumps(recording))
        np.testing.assert_array_equal(copy.read(), array)


def test_distant_rows_do_not_pull_in_what_lies_between():
    lazy = Counting(np.arange(100_000.0).reshape(10_000, 10))
    recording = Recording(lazy, pd.DataFrame({"stimulus": range(10_000)}), pd.DataFrame(index=range(10)))
    np.testing.assert_array_equal(recording.read(presentations=[9_999, 0, 5_000])[:, 0], [99_990, 0, 50_000])
    assert lazy.read == 30


def test_memory_maps_pickle_by_name(tmp_path):
    array = np.memmap(tmp_path / "r.dat", dtype=np.float32, mode="w+", shape=(1000, 100))
    array[:] = np.arange(100_000).reshape(1000, 100)
    recording = Recording(array, pd.DataFrame({"stimulus": range(1000)}), pd.DataFrame(index=range(100)))
    data = pickle.dumps(recording)
    assert len(data) < 100_000
    np.testing.assert_array_equal(pickle.loads(data).read(), array)
    part = Recording(array[10:20], pd.DataFrame({"stimulus": range(10)}), pd.DataFrame(index=range(100)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).read(), array[10:20])


def test_selection_by_units_and_presentations(recording):
    part = recording.select(region="V4", session=1)
    np.testing.assert_array_equal(part.read(), recording.read()[6:, 3:])
    assert list(part.units["unit"]) == [3, 4, 5]
    part = recording.select(stimulus=["d", "a"])
    rows = recording.presentations["stimulus"].isin(["a", "d"]).to_numpy()
    np.testing.assert_array_equal(part.read(), recording.read()[rows])
    assert part.stimuli.ids == ("a", "d")  # in the order of the set
    assert recording.select(region="V1").stimuli is recording.stimuli
    assert recording.select(session="1").n_presentations == 6  # text finds a number
    assert recording.select(unit=[2, 4], repeat=0).responses.shape == (4, 2)


def test_selection_of_a_column_of_both_tables():
    responses = np.arange(16.0).reshape(4, 4)
    presentations = pd.DataFrame({"stimulus": list("abab"), "subject": ["1", "1", "2", "2"]})
    units = pd.DataFrame({"subject": ["1", "2", "1", "2"]})
    part = Recording(responses, presentations, units).select(subject="2")
    np.testing.assert_array_equal(part.read(), responses[2:, [1, 3]])


def test_selection_errors(recording):
    with pytest.raises(ValueError, match=r"region='V5' is unknown.*'V1' or 'V4'|region='V5'.*'V4' or 'V1'"):
        recording.select(region="V5")
    with pytest.raises(ValueError, match="selection='regio' is unknown; did you mean 'region'"):
        recording.select(regio="V1")
    with pytest.raises(ValueError, match="none of the units meets"):
        recording.select(region="V1", unit=5)
    with pytest.raises(ValueError, match="needs a recording with a time axis"):
        recording.select(time=(0, 1))


def test_time_window_includes_both_ends():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(4, 2, 5))
    times = np.array([-0.1, 0.0, 0.1, 0.2, 0.3])
    recording = make(responses, list("abab"), times=times)
    assert recording.is_time_resolved
    part = recording.select(time=(0.0, 0.2), region="V4")
    np.testing.assert_array_equal(part.times, [0.0, 0.1, 0.2])
    np.testing.assert_array_equal(part.read(), responses[:, 1:, 1:4])
    np.testing.assert_array_equal(recording.select(time=(0.1, None)).read(), responses[:, :, 2:])
    with pytest.raises(ValueError, match="no time point"):
        recording.select(time=(0.4, 1))
    mean = recording.average_time(0.0, 0.2)
    assert not mean.is_time_resolved
    np.testing.assert_allclose(mean.read(), responses[:, :, 1:4].mean(2), rtol=1e-12)
    holes = responses.copy()
    holes[0, 0, 1:4] = np.nan
    holes[1, 1, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.nanmean(holes, 2)
    np.testing.assert_allclose(make(holes, list("abab"), times=times).average_time().read(), expected, rtol=1e-12)


@pytest.mark.parametrize("time_resolved", [False, True])
def test_average_equals_the_plain_loop(recording, stimuli, time_resolved):
    responses, shown = recording.read(), recording.presentations["stimulus"].to_numpy()
    times = None
    if time_resolved:
        responses = np.random.default_rng(1).normal(size=(12, 6, 4))
        responses[:, 2, 1] = np.nan
        times = [0, 1, 2, 3]
    else:
        responses = responses.copy()
        responses[shown == "d", 4] = np.nan
    mean = make(responses, shown, stimuli, times).average_repeats()
    assert list(mean.presentations["stimulus"]) == IDS  # StimulusSet order
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.stack([np.nanmean(responses[shown == one], axis=0) for one in IDS])
    assert np.isnan(expected).any()
    np.testing.assert_allclose(mean.read(), expected, rtol=1e-12)
    assert list(mean.presentations.columns) == ["stimulus", "repeat", "side", "n_repeats"]  # session varies
    first = make(responses, shown, None, times).average_repeats()
    assert list(first.presentations["stimulus"]) == list(pd.unique(shown))


def test_average_counts_valid_repeats_and_leaves_out_silent_stimuli(stimuli):
    shown = list("aabbbccd")
    responses = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    responses[[1, 4, 7]] = np.nan  # padding: one repeat of a, one of b, the only one of d
    recording = make(responses, shown, stimuli)
    with pytest.warns(UserWarning, match="1 of 4 stimuli") as caught:
        mean = recording.average_repeats()
    assert len(caught) == 1 and caught[0].filename == __file__
    table = mean.presentations.set_index("stimulus")["n_repeats"]
    assert table.to_dict() == {"b": 2, "a": 1, "c": 2}
    assert mean.stimuli.ids == ("b", "a", "c")
    np.testing.assert_array_equal(mean.read()[1], responses[0])
    assert mean.read().dtype == np.float32


def test_averaging_twice_changes_nothing(recording):
    mean = recording.average_repeats()
    again = mean.average_repeats()
    np.testing.assert_array_equal(again.read(), mean.read())
    pd.testing.assert_frame_equal(again.presentations, mean.presentations)
    assert list(mean.presentations["n_repeats"]) == [3, 3, 3, 3]


def test_average_reads_an_array_on_disk_once(monkeypatch):
    from neuralign.datasets import recording as module

    array = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    lazy = Counting(array)
    monkeypatch.setattr(module, "_BLOCK", 40 * 7)  # 7 units at a time
    shown = np.tile(np.arange(20), 2)
    mean = Recording(lazy, pd.DataFrame({"stimulus": shown}), pd.DataFrame(index=range(30))).average_repeats()
    assert lazy.read == array.size
    np.testing.assert_allclose(mean.read(), (array[:20] + array[20:]) / 2, rtol=1e-6)


def test_average_keeps_what_does_not_vary():
    table = pd.DataFrame({"stimulus": list("aab"), "tags": [["x"], ["x"], []], "run": [1, 2, 3], "gap": [np.nan] * 3})
    mean = Recording(np.zeros((3, 1)), table, pd.DataFrame(index=[0])).average_repeats()
    assert list(mean.presentations.columns) == ["stimulus", "repeat", "tags", "gap", "n_repeats"]
    assert list(mean.presentations["tags"]) == [["x"], []]


def test_average_ignores_infinity_and_takes_integers():
    counts = np.array([[1, 2], [2, 5], [7, 7]], np.uint8)
    mean = make(counts, list("aab")).average_repeats()
    np.testing.assert_array_equal(mean.read(), np.array([[1.5, 3.5], [7, 7]], np.float32))


def members(half):
    """Presentations behind each row, when presentation p drives unit p alone."""
    return [set(np.flatnonzero(row)) for row in half.read()]


def test_halves_are_disjoint_exhaustive_and_balanced(stimuli):
    shown = np.array(list("aaaabbbcccccd"))
    responses = np.eye(13, dtype=np.float32)
    responses[3] = np.nan  # fourth repeat of a is padding
    recording = make(responses, shown, stimuli)
    first, second = recording.split_halves(seed=1)
    names = list(first.presentations["stimulus"])
    assert names == ["b", "a", "c"] == list(second.presentations["stimulus"])
    assert first.stimuli.ids == second.stimuli.ids == ("b", "a", "c")
    valid = {"a": {0, 1, 2}, "b": {4, 5, 6}, "c": {7, 8, 9, 10, 11}}
    for name, one, two in zip(names, members(first), members(second), strict=True):
        assert not one & two and one | two == valid[name]
        assert abs(len(one) - len(two)) == 1
    assert list(first.presentations["n_repeats"] + second.presentations["n_repeats"]) == [3, 3, 5]
    assert members(recording.split_halves(seed=1)[0]) == members(first)
    assert any(members(recording.split_halves(seed=s)[0]) != members(first) for s in range(5))


def test_padding_does_not_count_as_a_repeat():
    responses = np.full((40, 40), np.nan, np.float32)
    valid = np.arange(40) % 10 < 2  # four stimuli of ten presentations, two of them valid
    responses[valid] = np.eye(40, dtype=np.float32)[valid]
    for half in make(responses, np.repeat(list("abcd"), 10)).split_halves(0):
        assert [len(one) for one in members(half)] == [1, 1, 1, 1]


def test_odd_repeats_go_to_either_half():
    responses = np.eye(90, dtype=np.float32)
    first, _ = make(responses, [f"s{i // 3:02d}" for i in range(90)]).split_halves(0)
    sizes = [len(one) for one in members(first)]
    assert set(sizes) == {1, 2} and 8 <= sizes.count(1) <= 22


def test_halves_average_per_unit_as_nanmean(recording):
    first, second = recording.split_halves(seed=2)
    n = first.presentations["n_repeats"].to_numpy(), second.presentations["n_repeats"].to_numpy()
    total = n[0][:, None] * first.read() + n[1][:, None] * second.read()
    mean = recording.average_repeats().read() * 3
    shown = recording.presentations["stimulus"].to_numpy()
    complete = np.stack([np.isfinite(recording.read()[shown == one]).all(0) for one in IDS])
    assert complete.any()
    np.testing.assert_allclose(total[complete], mean[complete], rtol=1e-10)


def test_halves_need_repeats(recording):
    with pytest.raises(ValueError, match=r"these 4 stimuli have 1 at most"):
        recording.average_repeats().split_halves()


def test_train_test_shares_no_stimulus(stimuli):
    shown = np.repeat([f"s{i}" for i in range(50)], 3)
    recording = make(np.arange(150.0)[:, None].repeat(2, 1), np.random.default_rng(0).permutation(shown))
    train, test = recording.train_test(test=0.2, seed=4)
    assert not set(train.presentations["stimulus"]) & set(test.presentations["stimulus"])
    assert train.n_presentations == 120 and test.n_presentations == 30
    assert set(train.read()[:, 0]) | set(test.read()[:, 0]) == set(np.arange(150.0))
    again = recording.train_test(test=0.2, seed=4)[1]
    np.testing.assert_array_equal(again.read(), test.read())
    assert set(recording.train_test(0.2, seed=5)[1].presentations["stimulus"]) != set(test.presentations["stimulus"])
    with pytest.raises(ValueError, match="fraction"):
        recording.train_test(test=20)


def test_train_test_uses_the_split_of_the_dataset(recording):
    split = recording.presentations["stimulus"].map({"a": "train", "b": "train", "c": "test", "d": "validation"})
    presentations = recording.presentations.assign(split=split)
    with_split = Recording(recording.responses, presentations, recording.units, stimuli=recording.stimuli)
    train, test = with_split.train_test()
    assert set(train.presentations["stimulus"]) == {"a", "b"} and train.stimuli.ids == ("b", "a")
    assert set(test.presentations["stimulus"]) == {"c"}
    train, test = with_split.train_test(test=0.5)
    assert train.presentations["stimulus"].nunique() == test.presentations["stimulus"].nunique() == 2
    torn = presentations.assign(split=np.where(presentations["repeat"] == 0, "test", "train"))
    with pytest.raises(ValueError, match=r"4 stimuli are in train and in test, first 'a'"):
        Recording(recording.responses, torn, recording.units).train_test()
    with pytest.raises(ValueError, match="expected 'train' and 'test'"):
        Recording(recording.responses, presentations.assign(split="train"), recording.units).train_test()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_folds_partition_presentations_by_stimulus(n):
    shown = np.random.default_rng(0).permutation(np.repeat([f"s{i}" for i in range(21)], 2))
    recording = make(np.zeros((42, 2)), shown)
    folds = recording.folds(n, seed=1)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(42))
    for train, test in folds:
        assert not set(shown[train]) & set(shown[test])
        assert len(train) + len(test) == 42
        assert abs(len(test) - 42 / n) < 2
    other = recording.folds(n, seed=2)
    assert any(len(a[1]) != len(b[1]) or (a[1] != b[1]).any() for a, b in zip(folds, other, strict=True))


def test_folds_keep_groups_and_what_they_link(stimuli):
    # Stimulus s1 was shown in scenes A and B, which ties both scenes together.
    shown = ["s0", "s1", "s1", "s2", "s3", "s4"]
    scene = np.array(["A", "A", "B", "B", "C", "D"])
    recording = make(np.zeros((6, 2)), shown)
    for train, test in recording.folds(3, groups=scene):
        assert not set(scene[train]) & set(scene[test])
    assert sorted(len(test) for _, test in recording.folds(3, groups=scene)) == [1, 1, 4]
    with pytest.raises(ValueError, match="n=4 folds of 3 groups"):
        recording.folds(4, groups=scene)
    with pytest.raises(ValueError, match="groups='scene' is unknown"):
        recording.folds(2, groups="scene")
    with pytest.raises(ValueError, match="one label for each of the 6"):
        recording.folds(2, groups=scene[:3])


def test_folds_are_as_equal_as_groups_of_different_size_allow():
    shown = np.repeat([f"s{i}" for i in range(8)], [6, 1, 1, 1, 1, 1, 1, 6])
    for seed in range(10):
        sizes = [len(test) for _, test in make(np.zeros((18, 2)), shown).folds(3, seed)]
        assert sizes == [6, 6, 6]


def test_folds_by_column_name():
    shown = [f"s{i}" for i in range(12)]
    recording = make(np.zeros((12, 2)), shown)
    folds = recording.folds(2, groups="session")
    assert sorted(tuple(test) for _, test in folds) == [tuple(range(6)), tuple(range(6, 12))]
    train, test = recording.train_test(0.5, groups="session")
    assert train.presentations["session"].nunique() == test.presentations["session"].nunique() == 1


def test_xarray_round_trip(recording):
    xr = pytest.importorskip("xarray")
    timed = make(np.random.default_rng(0).normal(size=(4, 3, 2)), list("abab"), times=[0.1, 0.2])
    both = Recording(
        timed.responses,
        timed.presentations.assign(subject="7"),
        timed.units,
        timed.times,
        name="timed",
        info={"citation": "nobody"},
    )
    for one in (recording, both):
        array = one.to_xarray()
        assert isinstance(array, xr.DataArray)
        assert not any(isinstance(index, pd.MultiIndex) for index in array.indexes.values())
        back = Recording.from_xarray(array.transpose(*reversed(array.dims)), stimuli=one.stimuli)
        np.testing.assert_array_equal(back.read(), one.read())
        pd.testing.assert_frame_equal(back.presentations[one.presentations.columns], one.presentations)
        pd.testing.assert_frame_equal(back.units[one.units.columns], one.units)
        assert back.name == one.name and back.info == one.info
    assert "presentation_subject" in both.to_xarray().coords
    assert (both.to_xarray().sel(time=0.2).values == both.read()[:, :, 1]).all()
    with pytest.raises(ValueError, match="rename"):
        Recording.from_xarray(recording.to_xarray().rename(unit="neuroid"))


def test_repr_says_what_is_there(recording):
    assert repr(recording) == ("<Recording 'test': 12 presentations of 4 stimuli; 6 units; subject 1; region V1, V4>")


@pytest.fixture
def joint():
    """Two subjects with 3 units each; A saw every stimulus 3 times, B stimulus a 4 times and b once."""
    shown = [("a", "A")] * 3 + [("b", "A")] * 3 + [("a", "B")] * 4 + [("b", "B")]
    presentations = pd.DataFrame(shown, columns=["stimulus", "subject"]).sample(frac=1, random_state=0)
    subject = np.repeat(["A", "B"], 3)
    responses = np.random.default_rng(0).normal(size=(11, 6))
    responses[presentations["subject"].to_numpy()[:, None] != subject] = np.nan
    return Recording(responses, presentations, pd.DataFrame({"subject": subject}))


def test_repeats_of_joint_recordings_are_those_of_a_subject(joint):
    assert joint.presentations.groupby("stimulus")["repeat"].max().to_dict() == {"a": 3, "b": 2}
    assert joint.average_repeats().presentations.set_index("stimulus")["n_repeats"].to_dict() == {"a": 4, "b": 3}
    for subject, counts in {"A": {"a": 3, "b": 3}, "B": {"a": 4, "b": 1}}.items():
        part = joint.select(subject=subject)
        assert part.n_presentations == sum(counts.values()) and np.isfinite(part.read()).all()
        mean = part.average_repeats()
        assert mean.presentations.set_index("stimulus")["n_repeats"].to_dict() == counts
        whole = joint.average_repeats()
        rows = [list(whole.presentations["stimulus"]).index(one) for one in mean.presentations["stimulus"]]
        columns = (joint.units["subject"] == subject).to_numpy()
        np.testing.assert_allclose(mean.read(), whole.read()[rows][:, columns])


def test_halves_of_joint_recordings_halve_each_subject(joint):
    for seed in range(20):
        one, other = joint.split_halves(seed=seed)
        assert np.isfinite(one.read()[:, :3]).all() and np.isfinite(other.read()[:, :3]).all()
        for half in (one, other):
            n = half.presentations.set_index("stimulus")["n_repeats"]
            assert n["a"] == 2 and n["b"] in (1, 2)
            # The one presentation of b to B is in neither half.
            assert np.isnan(half.read()[list(n.index).index("b"), 3:]).all()
    lone = joint.select(stimulus="b", subject="B")
    with pytest.raises(ValueError, match="of a stimulus by a subject"):
        lone.split_halves()


def test_own_column_n_repeats_is_kept_or_summed(recording):
    table = pd.DataFrame({"stimulus": list("abc"), "n_repeats": [2.5, np.nan, 0]})
    once = Recording(np.ones((3, 2)), table).average_repeats()
    np.testing.assert_array_equal(once.presentations["n_repeats"], [2.5, np.nan, 0])
    table = pd.DataFrame({"stimulus": list("aab"), "n_repeats": [2, 3, 4]})
    responses = np.ones((3, 2))
    responses[0, 0] = responses[1, 1] = np.nan
    assert list(Recording(responses, table).average_repeats().presentations["n_repeats"]) == [3, 4]
    assert list(Recording(np.ones((3, 2)), table).average_repeats().presentations["n_repeats"]) == [5, 4]


def test_units_with_one_column_and_gaps_are_averaged():
    mean = Recording(np.array([[1.0], [np.nan], [3.0]]), {"stimulus": list("aab")}).average_repeats()
    np.testing.assert_array_equal(mean.read(), [[1], [3]])


def test_groups_must_not_cross_the_split(recording):
    split = np.where(recording.presentations["stimulus"].isin(["a", "b"]), "train", "test")
    own = recording._with(presentations=recording.presentations.assign(split=split))
    kept = own.train_test(groups=np.where(split == "train", "x", "y"))
    assert [part.n_presentations for part in kept] == [6, 6]
    with pytest.raises(ValueError, match="1 groups are in train and in test, first 'x'"):
        own.train_test(groups=np.full(12, "x"))


def test_missing_regions_and_subjects_have_a_name():
    units = pd.DataFrame({"region": ["V1", None, np.nan], "subject": [np.nan, "S1", "S2"]})
    part = Recording(np.ones((2, 3)), {"stimulus": ["a", "b"]}, units)
    assert list(part.units["region"]) == ["V1", "unassigned", "unassigned"]
    assert list(part.units["subject"]) == ["unassigned", "S1", "S2"]
    assert part.select(region="unassigned").n_units == 2
    assert units["region"].isna().sum() == 2


@pytest.mark.parametrize("responses", [3.0, [1.0, 2.0]])
def test_responses_without_two_axes_are_refused(responses):
    with pytest.raises(ValueError, match=r"responses has shape .*expected \(presentation, unit\)"):
        Recording(responses, {"stimulus": ["a", "b"]})
