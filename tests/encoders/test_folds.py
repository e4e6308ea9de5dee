import warnings

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, LeaveOneGroupOut

from neuralign.align.permutation import permutation_test
from neuralign.encoders.linear.banded import BandedRidgeCV
from neuralign.encoders.linear.folds import fold_rows, scored_folds
from neuralign.encoders.linear.kernel import KernelRidgeCV
from neuralign.encoders.linear.pls import PLSRegression
from neuralign.encoders.linear.reduced_rank import ReducedRankRidge
from neuralign.encoders.linear.ridge import RidgeCV

ENCODERS = [
    RidgeCV([1.0]),
    KernelRidgeCV([1.0]),
    BandedRidgeCV([2, 2], [1.0], n_iter=2),
    PLSRegression([1, 2]),
    ReducedRankRidge([1.0], [1, 2], score="r"),
]
each_encoder = pytest.mark.parametrize("encoder", ENCODERS, ids=lambda one: type(one).__name__)


def simulate(n=40):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 4))
    return X, X @ rng.standard_normal((4, 3)) + rng.standard_normal((n, 3))


def rows_of(folds):
    return [(train.tolist(), test.tolist()) for train, test in folds]


@pytest.mark.parametrize("side, rows", [("training", ([0, 1, 2, 1, 1], [3, 4])), ("test", ([0, 2], [1, 3, 4, 1, 1]))])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_row_is_given_once(side, rows, dtype):
    X = np.zeros((5, 1))
    good = (np.arange(2), np.arange(2, 5))
    with pytest.raises(ValueError, match=f"{side} rows of fold 1 of cv hold row 1 3 times; give each row once"):
        fold_rows([good, tuple(np.array(one, dtype) for one in rows)], X, X, None)


@pytest.mark.parametrize("score, fewest", [("r", 3), ("r2", 2)])
def test_folds_too_short_for_a_score_are_left_out_and_counted_once(score, fewest):
    X = np.zeros((20, 1))
    groups = np.repeat([0, 1, 2, 3, 4], [1, 2, 3, 6, 8])
    with pytest.warns(UserWarning) as caught:
        folds = scored_folds(LeaveOneGroupOut(), X, X, groups, score)
    (message,) = (str(one.message) for one in caught)
    assert message.startswith(f"{fewest - 1} of 5 folds have fewer than {fewest} test rows")
    assert f"score='{score}'" in message
    expected = [fold for fold in fold_rows(LeaveOneGroupOut(), X, X, groups) if len(fold[1]) >= fewest]
    assert rows_of(folds) == rows_of(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(scored_folds(4, X[: 4 * fewest], X[: 4 * fewest], None, score)) == 4
    with pytest.raises(ValueError, match=f"test folds of one row, where score='{score}' needs at"):
        scored_folds(KFold(8), X[:8], X[:8], None, score)


@each_encoder
def test_no_encoder_correlates_two_rows_unheard(encoder):
    X, Y = simulate()
    with pytest.warns(UserWarning, match="cv=19 gives test folds of two rows at most, whose correlations are 1 or -1"):
        encoder.set_params(cv=19).fit(X[:38], Y[:38])
    folds = list(KFold(3).split(X))
    extra = (np.arange(30), np.array([38, 39]))
    expected = encoder.set_params(cv=folds).fit(X, Y).cv_score_
    with pytest.warns(UserWarning, match="1 of 4 folds have fewer than 3 test rows") as caught:
        encoder.set_params(cv=[*folds, extra]).fit(X, Y)
    assert len(caught) == 1
    np.testing.assert_allclose(encoder.cv_score_, expected, rtol=1e-12)


def test_what_cv_lacks_is_named():
    X, Y = simulate()
    encoder = RidgeCV([1.0], cv=KFold(4).split(X)).fit(X, Y)
    with pytest.raises(
        ValueError, match=r"no fold, as a generator that is used up; expected .*list\(splitter\.split\(X\)\)"
    ):
        encoder.fit(X, Y)
    for splitter in (GroupKFold(3), LeaveOneGroupOut()):
        with pytest.raises(ValueError, match=r"cv=.*pass groups=, one label for each row"):
            RidgeCV([1.0], cv=splitter).fit(X, Y)
    with pytest.raises(ValueError, match="number of splits"):  # what is wrong otherwise stays what it is
        RidgeCV([1.0], cv=KFold(50)).fit(X, Y)


@pytest.mark.parametrize("score, fewest", [("r", 15), ("r2", 10)])
def test_permutation_test_says_how_many_rows_it_takes(score, fewest):
    X, Y = simulate()
    with pytest.raises(ValueError, match=f"design holds features of 4 rows; expected at least {fewest}, for 5 folds"):
        permutation_test(X[:4], Y[:4], 1.0, n=9, score=score)
    with pytest.raises(ValueError, match="expected at least .*, for 2 folds"):
        permutation_test(X[:3], Y[:3], 1.0, n=9, score=score, runs=[0, 0, 1])
    assert np.isfinite(permutation_test(X[:fewest], Y[:fewest], 1.0, n=9, score=score).p).all()
