"""Tables of scores in csv, json and h5 files."""

import dataclasses
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from neuralign.align import load_results, save_results
from neuralign.align.inference import compare_models
from neuralign.align.score import COLUMNS, Evidence, Score, tabulate
from neuralign.align.topology import identify
from neuralign.datasets.rdms import RDMs, n_pairs

SUFFIXES = (".csv", ".json", ".h5")


def _table(n_stimuli=12):
    rng = np.random.default_rng(0)
    scores = [
        Score(
            model=model,
            layer=layer,
            dataset='a "quoted", set',
            subject=subject,
            region=region,
            metric="r",
            score=float(rng.normal()) if region != "NA" else float("nan"),
            ceiling=0.1 + 0.2 if subject == "01" else float("nan"),
            ci_low=1e-17,
            n_units=7,
            n_stimuli=n_stimuli,
            formula="encoding-1 x; ci: bootstrap, über stimuli",
            seed=3,
        )
        for model, layer in (("m", "l.1"), ("pixels", ""))
        for subject in ("01", "2")
        for region in ("V1", "NA", "null")
    ]
    units = pd.DataFrame(
        {
            "model": ["m", "m", "pixels"],
            "layer": ["l.1", "l.1", ""],
            "subject": "01",
            "region": ["V1", "NA", "V1"],
            "unit": ["u1", "u2", "u1"],
            "metric": "r",
            "score": [0.25, np.nan, -0.5],
            "ceiling": [0.5, 0.75, np.nan],
        }
    )
    kinds = pd.DataFrame(
        {
            "kind": ["model", "brain"],
            "model": ["m", np.nan],
            "layer": ["l.1", np.nan],
            "region": [np.nan, "V1"],
            "label": ["m l.1", "V1 01"],
        }
    )
    vectors = rng.random((2, n_pairs(n_stimuli)))
    vectors[1, 3] = np.nan
    rdms = RDMs(vectors, [f"s{k}" for k in range(n_stimuli)], kinds, "correlation")
    evidence = Evidence(
        units=units,
        rdms=rdms,
        thumbnails=rng.integers(0, 256, (n_stimuli, 4, 5, 3), dtype=np.uint8),
        provenance={"made": "now", "versions": {"numpy": "2"}, "options": {"seed": 3, "encoder": None}},
    )
    return tabulate(scores, evidence)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_cell_comes_back(tmp_path, suffix):
    table = _table()
    save_results(table, tmp_path / f"t{suffix}")
    back = load_results(tmp_path / f"t{suffix}")
    pd.testing.assert_frame_equal(back, table, check_exact=True, check_dtype=False)
    assert [back[c].dtype.kind for c in ("score", "ceiling", "n_units", "seed")] == ["f", "f", "i", "i"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_scores_without_a_seed_and_tables_without_rows(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    table = tabulate([Score("m", "l", "d", "s", "V1", "r", 0.5)])
    save_results(table, path)
    back = load_results(path)
    assert np.isnan(back["seed"].astype(float)).all()
    assert np.isnan(back["p"]).all()
    save_results(tabulate([]), path)
    assert list(load_results(path).columns) == COLUMNS
    assert len(load_results(path)) == 0


def test_columns_of_ones_own_are_kept(tmp_path):
    table = _table().assign(lab="x", run=range(12))
    for suffix in SUFFIXES:
        save_results(table, tmp_path / f"t{suffix}")
        back = load_results(tmp_path / f"t{suffix}")
        assert back["lab"].tolist() == ["x"] * 12
        assert back["run"].astype(int).tolist() == list(range(12))


def test_json_is_strict_and_csv_holds_the_table_only(tmp_path):
    table = _table()
    save_results(table, tmp_path / "t.json")
    records = json.loads((tmp_path / "t.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert records[1]["score"] is None
    assert records[0]["score"] == table["score"][0]
    save_results(table, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0].split(",") == COLUMNS
    assert len(lines) == 1 + len(table)


def test_evidence_comes_back_from_h5(tmp_path):
    table = _table()
    save_results(table, tmp_path / "t.h5")
    before, after = table.attrs["evidence"], load_results(tmp_path / "t.h5").attrs["evidence"]
    pd.testing.assert_frame_equal(after.units[before.units.columns], before.units, check_dtype=False)
    np.testing.assert_array_equal(after.rdms.vectors, before.rdms.vectors.astype(np.float32))
    assert after.rdms.vectors.dtype == np.float32
    assert after.rdms.stimulus_ids == before.rdms.stimulus_ids
    assert after.rdms.method == "correlation"
    assert after.rdms.table["label"].tolist() == ["m l.1", "V1 01"]
    assert after.rdms.table["region"].isna().tolist() == [True, False]
    np.testing.assert_array_equal(after.thumbnails, before.thumbnails)
    assert after.provenance == before.provenance


def _rdms(n_stimuli=8, n=6, seed=0):
    ids = [f"s{k}" for k in range(n_stimuli)]
    return RDMs(np.random.default_rng(seed).random((n, n_pairs(n_stimuli))), ids)


def _same_fields(one, other):
    for name in (field.name for field in dataclasses.fields(one)):
        before, after = getattr(one, name), getattr(other, name)
        assert type(before) is type(after), name
        if isinstance(before, np.ndarray):
            np.testing.assert_array_equal(before, after)
        elif isinstance(before, pd.DataFrame):
            pd.testing.assert_frame_equal(before, after)
        else:
            assert before == after, name


@pytest.mark.parametrize("crossvalidate", [None, (2, 2)])
def test_comparisons_of_models_come_back_from_h5(tmp_path, crossvalidate):
    """Whatever regions are called, in their order."""
    options = {"over": "subjects", "bootstrap": 5, "crossvalidate": crossvalidate}
    made = {
        region: compare_models(_rdms(seed=k)[:2], _rdms(seed=k + 9), **options)
        for k, region in enumerate(["V4/dorsal", "", "a"])
    }
    table = _table()
    table.attrs["evidence"] = Evidence(comparison=made)
    save_results(table, tmp_path / "t.h5")
    back = load_results(tmp_path / "t.h5").attrs["evidence"].comparison
    assert list(back) == list(made)
    for region, comparison in made.items():
        _same_fields(comparison, back[region])
        assert comparison.summary() == back[region].summary()


def test_identification_comes_back_from_h5(tmp_path):
    rdms = _rdms(n=8)
    table = pd.DataFrame({"region": list("ab") * 4, "subject": np.repeat(list("wxyz"), 2)})
    made = identify(RDMs(rdms.vectors, rdms.stimulus_ids, table), grid=[(0.0, 1.0), (0.2, 0.8)], bootstrap=3)
    scores = _table()
    scores.attrs["evidence"] = Evidence(identification=made)
    save_results(scores, tmp_path / "t.h5")
    back = load_results(tmp_path / "t.h5").attrs["evidence"].identification
    _same_fields(made, back)
    assert made.summary() == back.summary()


def test_a_loaded_table_saves_to_the_same_content(tmp_path):
    save_results(_table(), tmp_path / "a.h5")
    once = load_results(tmp_path / "a.h5")
    save_results(once, tmp_path / "b.h5")
    twice = load_results(tmp_path / "b.h5")
    pd.testing.assert_frame_equal(once, twice)
    one, two = once.attrs["evidence"], twice.attrs["evidence"]
    pd.testing.assert_frame_equal(one.units, two.units)
    np.testing.assert_array_equal(one.rdms.vectors, two.rdms.vectors)


def test_h5_of_a_large_study_is_small(tmp_path):
    n_stimuli, n_units = 600, 20_000
    base = _table()
    units = pd.DataFrame(
        {"unit": [f"u{k}" for k in range(n_units)] * 10, "layer": np.repeat(list("abcdefghij"), n_units)}
    )
    units = units.assign(
        model="a model with a long name", subject="s", region="V1", metric="r", score=0.5, ceiling=0.75
    )
    rng = np.random.default_rng(0)
    rdms = RDMs(rng.random((10, n_pairs(n_stimuli))), list(map(str, range(n_stimuli))))
    base.attrs["evidence"] = Evidence(units=units, rdms=rdms)
    save_results(base, tmp_path / "t.h5")
    # 4 bytes per pair, 16 for two numbers and 4 for each of six codes per unit, and the names once.
    assert (tmp_path / "t.h5").stat().st_size < 1.1 * (10 * n_pairs(n_stimuli) * 4 + 10 * n_units * 40) + 2e6
    back = load_results(tmp_path / "t.h5").attrs["evidence"].units
    pd.testing.assert_frame_equal(back, units, check_dtype=False)


def test_saving_changes_neither_table_nor_evidence(tmp_path):
    table, fresh = _table(), _table()
    for suffix in SUFFIXES:
        save_results(table, tmp_path / f"t{suffix}")
    pd.testing.assert_frame_equal(table, fresh)
    pd.testing.assert_frame_equal(table.attrs["evidence"].units, fresh.attrs["evidence"].units)
    assert table.attrs["evidence"].rdms.vectors.dtype == np.float64


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"t{suffix}"
    save_results(_table(), path)
    old = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_results(_table().assign(score=0.0), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_an_error_that_names_it(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    save_results(_table(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"cut\\{suffix}"):
        load_results(path)


def test_foreign_files_are_errors_that_name_them(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a.json").write_text('{"model": "m"}')
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    (tmp_path / "b.h5").write_text("no HDF5 at all")
    for name in ("a.csv", "a.json", "b.json", "a.h5", "b.h5"):
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            load_results(tmp_path / name)
    with pytest.raises(ValueError, match="lacks the columns model, layer"):
        load_results(tmp_path / "a.csv")


def test_bad_paths(tmp_path):
    table = _table()
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        load_results(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"'\.txt'.*'\.csv', '\.json', '\.h5'"):
        save_results(table, tmp_path / "t.txt")
    with pytest.raises(ValueError, match=r"did you mean '\.h5'"):
        load_results(tmp_path / "t.h5py")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save_results(table, tmp_path / "nowhere" / "t.csv")
    folder = tmp_path / "folder.h5"
    folder.mkdir()
    for call in (lambda: save_results(table, folder), lambda: load_results(folder)):
        with pytest.raises(ValueError, match="is a folder"):
            call()


def test_only_a_table_of_scores_is_saved(tmp_path):
    with pytest.raises(ValueError, match="lacks the columns region, p"):
        save_results(_table().drop(columns=["region", "p"]), tmp_path / "t.csv")
    with pytest.raises(ValueError, match="table is a list"):
        save_results([1, 2], tmp_path / "t.csv")


def test_files_are_readable_by_others(tmp_path):
    mask = os.umask(0o022)
    try:
        for suffix in SUFFIXES:
            save_results(_table(), tmp_path / f"t{suffix}")
            assert (tmp_path / f"t{suffix}").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)
