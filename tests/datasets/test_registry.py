import hashlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from neuralign import datasets
from neuralign.datasets import registry
from neuralign.datasets.registry import DatasetCard, FileCard, register

CONTENT = b"responses"


@pytest.fixture
def toy(monkeypatch):
    """A registered dataset of two files; the loader returns what it was given."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._loaders()))
    monkeypatch.delenv("NEURALIGN_DATA", raising=False)
    card = DatasetCard(
        "toy-set",
        "A toy",
        "nobody",
        "CC0",
        "spikes",
        "the toy shop",
        files=(
            FileCard("a/one.npy", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),
            FileCard("two.npy", 3),
        ),
        folders=("toybox",),
        selection={"session": "day"},
    )

    @register(card)
    def load_toy(root: Path, session: str = "1"):
        return root, session

    return card


def test_root_is_given_or_found_through_the_environment(toy, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no root was given.*the toy shop.*--root in the shell.*NEURALIGN_DATA"):
        datasets.load("toy-set")
    assert datasets.load("toy-set", root=tmp_path, session="2") == (tmp_path, "2")
    monkeypatch.setenv("NEURALIGN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder toy-set or toybox in NEURALIGN_DATA"):
        datasets.load("toy-set")
    (tmp_path / "toybox").mkdir()
    assert datasets.load("toy-set")[0] == tmp_path / "toybox"
    assert datasets.load("toy-set", root=str(tmp_path))[0] == tmp_path / "toybox"
    (tmp_path / "toy-set").mkdir()
    assert datasets.load("toy-set")[0] == tmp_path / "toy-set"
    with pytest.raises(FileNotFoundError, match="nowhere.*the toy shop"):
        datasets.load("toy-set", root=tmp_path / "nowhere")


def test_unknown_names_come_with_near_ones(toy, tmp_path):
    with pytest.raises(ValueError, match="dataset='toyset' is unknown; did you mean 'toy-set'"):
        datasets.load("toyset")
    with pytest.raises(ValueError, match="did you mean 'cowley-v4'"):
        datasets.info("cowley_v4")
    with pytest.raises(ValueError, match="selection='sesion' is unknown; did you mean 'session'"):
        datasets.load("toy-set", root=tmp_path, sesion="1")


def test_list_says_what_is_found(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALIGN_DATA", str(tmp_path))
    table = datasets.list().set_index("name")
    assert list(table.columns) == ["title", "modality", "licence", "found"]
    assert {"cowley-v4", "kriegeskorte-92", "simulated", "toy-set"} <= set(table.index)
    assert not table.loc["toy-set", "found"] and table.loc["simulated", "found"]
    (tmp_path / "toybox").mkdir()
    assert datasets.list().set_index("name").loc["toy-set", "found"]
    assert datasets.info("toy-set") is toy


def test_check_compares_files_with_the_card(toy, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.npy").write_bytes(CONTENT)
    table = datasets.check("toy-set", tmp_path)
    assert list(table["file"]) == ["a/one.npy", "two.npy"]
    assert list(table["found"]) == [True, False] and list(table["size"]) == [9, -1]
    assert list(table["status"]) == ["as expected", "absent"]
    (tmp_path / "a" / "one.npy").write_bytes(b"responseS")
    (tmp_path / "two.npy").write_bytes(b"1234")
    status = list(datasets.check("toy-set", tmp_path)["status"])
    assert "other content" in status[0] and "another size than the 3 bytes" in status[1]
    (tmp_path / "two.npy").write_bytes(b"123")
    (tmp_path / "a" / "one.npy").rename(tmp_path / "one.npy")  # flat
    status = list(datasets.check("toy-set", tmp_path)["status"])
    assert "other content" in status[0] and "not compared" in status[1]


def test_simulated_data_need_no_files():
    assert len(datasets.check("simulated")) == 0
    brain = datasets.load("simulated", n_stimuli=10, n_units=8, n_repeats=2)
    assert brain.n_presentations == 20
    same = datasets.simulate.visual_cortex(n_stimuli=10, n_units=8, n_repeats=2, seed=0)
    np.testing.assert_array_equal(brain.read(), same.read())


def test_names_are_taken_once(toy):
    with pytest.raises(ValueError, match="registered twice"):

        @register(toy)
        def another(root):
            return root


def test_other_packages_join_through_entry_points(toy, monkeypatch):
    class Point:
        def __init__(self, value, load):
            self.value, self.load = value, load

    def good():
        @register(DatasetCard("foreign", "t", "c", "l", "m", "s", needs_root=False))
        def load_foreign(root):
            return "foreign data"

    def broken():
        raise ImportError("no module named foreign2")

    points = [Point("foreign2:load", broken), Point("foreign:load", good)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "neuralign.datasets" else [])
    registry._import_loaders.cache_clear()
    with pytest.warns(UserWarning, match="foreign2:load cannot be used: ImportError") as caught:
        assert datasets.load("foreign") == "foreign data"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.list()  # once is enough


def test_import_from_the_checkout_root_says_what_is_wrong():
    root = Path(registry.__file__).resolve().parents[1]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import datasets"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert "the checkout root is on sys.path" in result.stderr


def test_import_is_light():
    code = (
        "import sys, neuralign.datasets; "
        "print([m for m in ('torch', 'sklearn', 'matplotlib', 'xarray') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_cards_are_read_only():
    selection = {"session": "day"}
    card = registry.DatasetCard("a", "", "", "", "", "", selection=selection)
    selection["other"] = "x"
    assert dict(card.selection) == {"session": "day"} and "session" in card.selection
    with pytest.raises(TypeError):
        card.selection["session"] = "night"
