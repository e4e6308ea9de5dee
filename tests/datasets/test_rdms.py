import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import squareform

from neuralign.datasets.rdms import RDMs, pair_lookup

IDS = list("abcde")


def stack(n=4, ids=IDS, **more):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"subject": ["s1", "s1", "s2", "s2"][:n], "session": [1, 2, 1, 2][:n], "region": ["V1"] * n})
    vectors = rng.random((n, len(ids) * (len(ids) - 1) // 2))
    return RDMs(vectors, ids, table, method="correlation", **more)


def test_matrices_are_squareform():
    rdms = stack()
    assert rdms.matrices.shape == (4, 5, 5)
    for matrix, vector in zip(rdms.matrices, rdms.vectors, strict=True):
        np.testing.assert_array_equal(matrix, squareform(vector))


def test_pair_lookup_is_squareform():
    np.testing.assert_array_equal(pair_lookup(6), squareform(np.arange(15)))


def test_input_is_copied_and_result_read_only():
    vectors = np.ones((1, 10))
    rdms = RDMs(vectors, IDS)
    vectors[:] = 2
    assert (rdms.vectors == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        rdms.vectors[0, 0] = 3


@pytest.mark.parametrize("dtype, kept", [("float32", "float32"), ("int64", "float64"), ("float16", "float64")])
def test_dtype(dtype, kept):
    assert RDMs(np.ones(10, dtype), IDS).vectors.dtype == kept


def test_indexing_keeps_a_stack():
    rdms = stack()
    np.testing.assert_array_equal(rdms[1].vectors, rdms.vectors[1:2])
    np.testing.assert_array_equal(rdms[-1].vectors, rdms.vectors[3:])
    np.testing.assert_array_equal(rdms[:2].vectors, rdms.vectors[:2])
    np.testing.assert_array_equal(rdms[[3, 0]].vectors, rdms.vectors[[3, 0]])
    mask = np.array([True, False, False, True])
    assert rdms[mask].table["subject"].tolist() == ["s1", "s2"]
    assert len(rdms[[]]) == 0
    assert len(list(rdms)) == 4
    with pytest.raises(IndexError, match="4 of a stack of 4"):
        rdms[4]


def test_select():
    rdms = stack()
    np.testing.assert_array_equal(rdms.select(subject="s2", session=[1]).vectors, rdms.vectors[[2]])
    assert len(rdms.select(session=[1, 2])) == 4
    assert len(rdms.select(session="1")) == len(rdms.select(session=1))  # text finds a number
    with pytest.raises(ValueError, match="subject='s3' is unknown; did you mean"):
        rdms.select(subject="s3")
    with pytest.raises(ValueError, match="selection='sujet' is unknown; did you mean 'subject'"):
        rdms.select(sujet="s1")
    with pytest.raises(ValueError, match="none of the RDMs meets"):
        rdms[[0, 3]].select(subject="s1", session=2)


def test_mean_by_columns():
    rdms = stack()
    everything = rdms.mean()
    np.testing.assert_allclose(everything.vectors, rdms.vectors.mean(0, keepdims=True))
    assert everything.table.columns.tolist() == ["region"]
    by_subject = rdms.mean(by="subject")
    np.testing.assert_allclose(by_subject.vectors[1], rdms.vectors[2:].mean(0))
    assert by_subject.table.to_dict("list") == {"subject": ["s1", "s2"], "region": ["V1", "V1"]}
    np.testing.assert_allclose(rdms.mean(by=["session", "subject"]).vectors, rdms.vectors)
    with pytest.raises(ValueError, match="column='run'"):
        rdms.mean(by="run")


def test_mean_takes_known_pairs_only():
    vectors = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    np.testing.assert_array_equal(RDMs(vectors, "abc").mean().vectors, [[2.0, 4.0, np.nan]])


def test_reorder_and_subset():
    rdms = stack()
    order = ["d", "a", "c"]
    rows = [3, 0, 2]
    moved = rdms.reorder(order)
    np.testing.assert_array_equal(moved.matrices, rdms.matrices[:, rows][:, :, rows])
    assert moved.stimulus_ids == order
    with pytest.raises(ValueError, match=r"2 of 3 stimulus ids are not in the RDMs: 'x', 'y'"):
        rdms.reorder(["a", "x", "y"])


def test_from_matrices_round_trip():
    rdms = stack()
    again = RDMs.from_matrices(rdms.matrices, IDS, rdms.table)
    np.testing.assert_array_equal(again.vectors, rdms.vectors)
    np.testing.assert_array_equal(RDMs.from_matrices(rdms.matrices[0], IDS).vectors, rdms.vectors[:1])
    with_nan_diagonal = rdms.matrices[0].copy()
    np.fill_diagonal(with_nan_diagonal, np.nan)
    np.testing.assert_array_equal(RDMs.from_matrices(with_nan_diagonal, IDS).vectors, rdms.vectors[:1])


def test_from_matrices_refuses():
    matrix = stack(1).matrices[0]
    with pytest.raises(ValueError, match="similarity; pass 1 - matrix"):
        RDMs.from_matrices(1 - matrix, IDS)
    lopsided = matrix.copy()
    lopsided[0, 1] += 0.1
    with pytest.raises(ValueError, match="not symmetric"):
        RDMs.from_matrices(lopsided, IDS)
    half_known = matrix.copy()
    half_known[0, 1] = np.nan
    with pytest.raises(ValueError, match="not symmetric"):
        RDMs.from_matrices(half_known, IDS)
    with pytest.raises(ValueError, match="diagonal up to 0.5"):
        RDMs.from_matrices(matrix + 0.5 * np.eye(5), IDS)
    with pytest.raises(ValueError, match=r"shape \(1, 5, 4\)"):
        RDMs.from_matrices(matrix[:, :4], IDS)


def test_concatenate():
    rdms = stack()
    turned = rdms[:1].reorder(IDS[::-1])
    both = RDMs.concatenate([rdms, turned])
    np.testing.assert_array_equal(both.vectors[4], rdms.vectors[0])
    assert both.method == "correlation" and len(both) == 5
    other = RDMs(np.ones(10), IDS, pd.DataFrame({"label": ["one"]}))
    mixed = RDMs.concatenate([rdms, other])
    assert mixed.method == "" and mixed.table["label"].tolist()[-1] == "one"
    with pytest.raises(ValueError, match=r"stacks\[1\] is over other stimuli: 1 ids are missing .* 1 are extra"):
        RDMs.concatenate([rdms, stack(ids=list("abcdx"))])
    with pytest.raises(ValueError, match="at least one"):
        RDMs.concatenate([])


def test_stimuli_travel_along():
    stimuli = object()
    rdms = stack(stimuli=stimuli)
    assert rdms[0].stimuli is stimuli
    assert rdms.mean().stimuli is stimuli
    assert RDMs.concatenate([stack(), rdms]).stimuli is stimuli


@pytest.mark.parametrize(
    "vectors, ids, message",
    [
        (np.ones((1, 9)), IDS, r"9 pairs for 5 stimulus_ids; 5 stimuli have 10 pairs\."),
        (np.ones((1, 6)), IDS, "6 pairs belong to 4 stimuli"),
        (np.ones((1, 5, 5)), IDS, "from_matrices"),
        (np.ones((1, 10)), list("abcda"), "'a' appears more than once"),
        (np.full((1, 10), np.inf), IDS, "10 infinite"),
        (np.array([["x"] * 10]), IDS, "expected real numbers"),
    ],
)
def test_bad_input(vectors, ids, message):
    with pytest.raises(ValueError, match=message):
        RDMs(vectors, ids)


def test_table_must_match():
    with pytest.raises(ValueError, match="table has 2 rows for 1 RDMs"):
        RDMs(np.ones(10), IDS, pd.DataFrame({"subject": ["s1", "s2"]}))


def test_negative_dissimilarities_are_allowed():
    assert RDMs(-np.ones(10), IDS).vectors.min() == -1
