import pickle

import numpy as np
import pandas as pd
import pytest

from neuralign.datasets import StimulusSet, TimeSeries


@pytest.fixture
def series():
    stimuli = StimulusSet.from_words(["so", "it", "goes"], [0.5, 1.0, 0.2], runs=[1, 1, 2])
    events = pd.DataFrame({"onset": [0.5, 1.0, 0.2], "stimulus": stimuli.ids, "run": [1, 1, 2]})
    responses = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    units = pd.DataFrame({"region": ["A1", "A1", "STG", "STG"], "subject": [1, 2, 1, 2]})
    return TimeSeries(responses, 0.5, events, [1, 1, 1, 1, 2, 2, 2, 3, 3], units, stimuli, name="story")


def test_tables_and_times(series):
    assert (series.n_samples, series.n_units) == (9, 4)
    np.testing.assert_array_equal(series.times, [0, 2, 4, 6, 0, 2, 4, 0, 2])
    assert list(series.events.columns) == ["onset", "duration", "stimulus", "run"]
    assert "9 samples at 0.5 Hz in 3 runs" in repr(series)
    np.testing.assert_array_equal(series.read([3, 0], [8, 1]), series.responses[np.ix_([8, 1], [3, 0])])
    blocks = [values for _, values in series.unit_blocks(3)]
    np.testing.assert_array_equal(np.concatenate(blocks, 1), series.responses)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(series)).read(), series.read())


def test_selection_takes_events_and_stimuli_along(series):
    part = series.select(run=2, region="STG", subject=2)
    np.testing.assert_array_equal(part.read(), series.responses[4:7, 3:])
    assert list(part.events["stimulus"]) == ["word-00003"] and part.stimuli.texts() == ["goes"]
    assert series.select(region="A1").stimuli is series.stimuli
    with pytest.raises(ValueError, match="run='4' is unknown"):
        series.select(run="4")
    with pytest.raises(ValueError, match="selection='area'"):
        series.select(area="A1")


def test_folds_hold_out_whole_runs(series):
    folds = series.folds()
    assert len(folds) == 3
    for train, test in folds:
        assert not set(series.runs[train]) & set(series.runs[test])
    assert sorted(len(test) for _, test in series.folds(2)) == [4, 5]
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(9))
    with pytest.raises(ValueError, match="3 runs"):
        series.folds(4)


def test_one_run_gives_contiguous_blocks_with_trimmed_training():
    series = TimeSeries(np.zeros((100, 2)), sampling_rate=2.0)
    folds = series.folds(4, trim=3.0)
    for train, test in folds:
        assert (np.diff(test) == 1).all() and len(test) == 25
        distance = np.abs(train[:, None] - test).min(1) / 2.0
        assert distance.min() > 3.0
    assert len(folds[0][0]) == 75 - 6 and len(folds[1][0]) == 75 - 12
    assert all(len(train) == 75 for train, _ in series.folds(4))
    with pytest.raises(ValueError, match="leaves no training"):
        series.folds(2, trim=1000)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="neighbours"):
        TimeSeries(np.zeros((3, 1)), 1.0, runs=[1, 2, 1])
    with pytest.raises(ValueError, match="sampling_rate"):
        TimeSeries(np.zeros((3, 1)), 0)
    with pytest.raises(ValueError, match="one label for each of 3"):
        TimeSeries(np.zeros((3, 1)), 1.0, runs=[1])
    with pytest.raises(ValueError, match="run='9' is unknown"):
        TimeSeries(np.zeros((3, 1)), 1.0, pd.DataFrame({"onset": [0], "stimulus": ["a"], "run": [9]}))
    with pytest.raises(ValueError, match="2 runs"):
        TimeSeries(np.zeros((2, 1)), 1.0, pd.DataFrame({"onset": [0], "stimulus": ["a"]}), runs=[1, 2])
    with pytest.raises(ValueError, match="onset"):
        TimeSeries(np.zeros((2, 1)), 1.0, pd.DataFrame({"time": [0]}))


def test_save_and_load(series, tmp_path):
    series.save(tmp_path / "s.h5")
    for lazy in (False, True):
        back = TimeSeries.load(tmp_path / "s.h5", lazy=lazy)
        np.testing.assert_array_equal(back.read(), series.read())
        np.testing.assert_array_equal(back.runs, series.runs)
        pd.testing.assert_frame_equal(back.events, series.events)
        pd.testing.assert_frame_equal(back.units, series.units)
        assert back.stimuli.content_hash == series.stimuli.content_hash
        assert back.stimuli.table_hash == series.stimuli.table_hash
        assert (back.sampling_rate, back.name) == (0.5, "story")


def test_to_xarray(series):
    pytest.importorskip("xarray")
    array = series.to_xarray()
    assert array.dims == ("sample", "unit")
    assert list(array["run"].values) == list(series.runs)
    np.testing.assert_array_equal(array.values[:, (array["region"] == "STG").values], series.responses[:, 2:])
