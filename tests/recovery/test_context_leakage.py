"""The committed curve over context leakage is what its example computes."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "context_leakage.py"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("context_leakage", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(EXAMPLE.with_suffix(".csv"))


def test_the_table_is_complete(example, table):
    keys = pd.MultiIndex.from_frame(table[["world", "leakage", "encoder", "seed"]])
    readers = [*example.CLOSED, *example.TRAINED]
    expected = pd.MultiIndex.from_product([example.WORLDS, example.LEAKAGE, readers, example.SEEDS])
    assert keys.is_unique and set(keys) == set(expected)
    assert table["score"].between(-0.1, 1.05).all()
    routed = (table["encoder"] == "router") & (table["world"] == "content")
    assert np.array_equal(table["hit"].notna(), routed)


def test_what_the_example_says(table):
    mean = table.groupby(["world", "encoder", "leakage"])["score"].mean().unstack()
    content, places = mean.loc["content"], mean.loc["retinotopic"]
    assert content.drop("router").to_numpy().max() < 0.1
    assert content.loc["router", :0.75].min() > 0.915
    assert (table["hit"][(table["leakage"] < 1) & table["hit"].notna()] >= 0.99).all()
    for kind in (content, places):
        assert (kind[1.0] - kind.loc["pooled", 1.0]).abs().max() < 0.05, "at 1 there is but one token"
    assert places.loc["grid", [0.0, 0.75]].round(2).tolist() == [0.94, 0.79]
    assert places.loc["factorized", [0.0, 0.75]].round(2).tolist() == [0.97, 0.84]


@pytest.mark.parametrize(
    ("kind", "leakage", "encoder", "seed"),
    [
        ("content", 0.5, "pooled", 0),
        ("retinotopic", 0.25, "factorized", 1),
        pytest.param("content", 0.5, "router", 0, marks=pytest.mark.slow),
        pytest.param("content", 1.0, "router", 1, marks=pytest.mark.slow),
    ],
)
def test_points_come_out_again(example, table, kind, leakage, encoder, seed):
    found = example.row(kind, leakage, encoder, seed)
    same = (table["world"] == kind) & (table["leakage"] == leakage)
    (line,) = table[same & (table["encoder"] == encoder) & (table["seed"] == seed)].to_dict("records")
    for column in ("score", "hit"):
        assert found[column] == pytest.approx(line[column], abs=0.05, nan_ok=True)
