"""Looking after stored features: what is listed, what is found damaged, what is removed."""

import json
import time

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from neuralign.cache_cli import app
from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, Model, extract
from neuralign.encoders.features import upkeep
from neuralign.encoders.features.shards import Entry


@pytest.fixture
def run(store):
    def run(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--cache", str(store)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout

    return run


@pytest.fixture
def store(tmp_path):
    """Two layers of one model and one of another, complete."""
    stimuli = StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8))
    for name, layers in (("alpha", ["0", "1"]), ("beta", ["1"])):
        torch.manual_seed(len(name))
        module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
        extract(Model(name, module, ImageInputs((8, 8))), stimuli, layers, cache=tmp_path)
    return tmp_path


def entry(store, model, layer):
    table = upkeep.entries(store)
    [key] = table.loc[(table["model"] == model) & (table["layer"] == layer), "key"]
    return Entry(store, key)


def table(run, *arguments):
    code, out = run(*arguments, "--json")
    return code, json.loads(out)


def test_what_is_stored_is_listed(run, store):
    code, rows = table(run, "ls")
    assert code == 0
    assert sorted((row["model"], row["layer"]) for row in rows) == [("alpha", "0"), ("alpha", "1"), ("beta", "1")]
    for row in rows:
        assert (row["rows"], row["shape"], row["dtype"]) == (5, "36 x 2", "float32")
        assert row["state"] == "complete" and row["blocks"].split("/")[0] == row["blocks"].split("/")[1]
        assert row["bytes"] >= 5 * 72 * 4 and 0 <= row["days"] < 0.01
    code, out = run("ls")
    assert code == 0 and "alpha" in out and "36 x 2" in out
    assert out.splitlines()[-1].startswith("3 layers, ") and str(store) in out


def test_an_empty_store_is_none(tmp_path):
    result = CliRunner().invoke(app, ["ls", "--cache", str(tmp_path / "absent")])
    assert result.exit_code == 0 and result.stdout.startswith("0 layers, 0 B in")
    assert not (tmp_path / "absent").exists()


def test_states_are_told_apart(run, store):
    partial = Entry(store, "aa" + "0" * 62)
    partial.create(9, (2,), "float16", 4, {}, {"model": "gamma", "layer": "x"})
    partial.commit(1, np.zeros((4, 2), np.float16))
    holes = Entry(store, "bb" + "0" * 62)
    holes.create(4, (), "float32", 4, {}, {"model": "gamma", "layer": "y"})
    holes.commit(0, np.zeros(4, np.float32), [2])
    old = store / "features" / "cc" / ("cc" + "0" * 62)
    old.mkdir(parents=True)
    np.save(old / "features.npy", np.zeros((2, 2)))
    (old / "entry.json").write_text('{"shape": [2, 2], "made_from": {"layer": "z"}}')
    (store / "features" / "dd" / "dd00").mkdir(parents=True)
    _, rows = table(run, "ls")
    found = {
        row["key"][:2]: (row["layer"], row["blocks"], row["shape"], row["state"])
        for row in rows
        if row["key"][2:4] == "00"
    }
    assert found["aa"] == ("x", "1/3", "2", "partial")
    assert found["bb"] == ("y", "1/1", "1", "left out")
    assert found["cc"] == ("z", "0/0", "", "format 1")
    assert found["dd"] == ("", "0/0", "", "damaged")


def test_damage_is_found_even_where_the_times_of_files_hide_it(run, store):
    code, rows = table(run, "verify")
    assert code == 0 and [row["damaged"] for row in rows] == [0, 0, 0]
    hurt = entry(store, "alpha", "1")
    data = hurt.folder / "data"
    with data.open("r+b") as file:
        file.seek(40)
        file.write(b"\x01\x02\x03")
    seen = data.stat()
    state = {"size": seen.st_size, "mtime_ns": seen.st_mtime_ns, "ctime_ns": seen.st_ctime_ns, "ino": seen.st_ino}
    (hurt.folder / "stamp.json").write_text(json.dumps(state))  # what a failing disk looks like: nobody wrote
    assert hurt.read() is not None
    code, out = run("verify", "beta")
    assert code == 0 and "1 layers, 0 damaged" in out
    code, rows = table(run, "verify")
    assert code == 1
    assert [(row["model"], row["layer"], row["damaged"]) for row in rows if row["state"] == "damaged"] == [
        ("alpha", "1", 1)
    ]
    assert hurt.read() is None
    _, rows = table(run, "ls")
    assert {row["layer"]: row["state"] for row in rows if row["model"] == "alpha"} == {"0": "complete", "1": "partial"}


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("beta", [("alpha", "0"), ("alpha", "1")]),
        ("1", [("alpha", "0")]),
        ("alpha/1", [("alpha", "0"), ("beta", "1")]),
        ("a*/*", [("beta", "1")]),
        ("KEY", [("alpha", "1"), ("beta", "1")]),
    ],
)
def test_what_is_named_is_removed_and_nothing_else(run, store, pattern, left):
    pattern = entry(store, "alpha", "0").key[:8] if pattern == "KEY" else pattern
    code, rows = table(run, "rm", pattern, "--dry-run")
    assert code == 0 and len(rows) == 3 - len(left)
    assert len(upkeep.entries(store)) == 3
    code, gone = table(run, "rm", pattern)
    assert code == 0 and {row["key"] for row in gone} == {row["key"] for row in rows}
    found = upkeep.entries(store)
    assert sorted(zip(found["model"], found["layer"], strict=True)) == left
    for _, row in found.iterrows():
        assert Entry(store, row["key"]).read() is not None


def test_nothing_is_removed_by_accident(run, store):
    for arguments in (["rm"], ["rm", "alpha", "--all"]):
        with pytest.raises(ValueError, match="say what to remove"):
            run(*arguments)
    with pytest.raises(ValueError, match="pattern='alpa' is unknown; did you mean 'alpha'"):
        run("rm", "alpa")
    with pytest.raises(ValueError, match="is unknown"):
        run("rm", entry(store, "alpha", "0").key[:4])  # too short to be meant
    assert len(upkeep.entries(store)) == 3


def test_what_is_being_computed_stays(run, store):
    busy = entry(store, "alpha", "0")
    with (busy.folder / "manifest.jsonl").open("a") as file:
        file.write('{"block": 0, "bad": true}\n')
    with busy.claim(0) as mine:
        assert mine
        with pytest.raises(ValueError, match="1 of 3 layers .first: alpha 0. are being computed; wait"):
            run("rm", "--all")
        assert len(upkeep.entries(store)) == 3
    code, out = run("rm", "--all")
    assert code == 0 and "3 layers" in out and "removed" in out
    assert not [path for path in (store / "features").rglob("*") if path.is_file()]


def test_a_lock_of_a_killed_process_holds_nobody_up(run, store):
    dead = entry(store, "alpha", "0").folder / "locks"
    dead.mkdir()
    (dead / "0").touch()
    assert run("rm", "--all")[0] == 0


def test_age_counts_from_the_last_write(run, store, monkeypatch):
    assert table(run, "rm", "--older-than", "1") == (0, [])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86400)
    assert len(table(run, "rm", "beta", "--older-than", "3")[1]) == 0
    assert len(table(run, "rm", "--older-than", "1")[1]) == 3


def test_what_killed_runs_left_behind_goes(run, store, monkeypatch):
    for name in (".trash-1", ".scratch-1"):
        (store / name).mkdir()
        (store / name / "file").write_bytes(b"x")
    (store / "features" / "ab").mkdir(exist_ok=True)
    (store / "features" / "ab" / ".trash-2").mkdir()
    run("rm", "beta")
    left = {path.name for path in store.rglob(".*")}
    assert left == {".scratch-1"}  # somebody may be at it
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86400)
    run("rm", "alpha")
    assert not list(store.rglob(".*"))


def test_a_reader_keeps_what_is_removed_under_its_hands(store):
    array = entry(store, "beta", "1").read()
    truth = np.array(array)
    upkeep.remove(store)
    np.testing.assert_array_equal(array, truth)
    assert len(upkeep.entries(store)) == 0
