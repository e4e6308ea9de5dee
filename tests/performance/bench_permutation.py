"""One permutation at fixed alphas, beside himalaya's ridge refitted fold by fold (``make bench``).

Ours has been set up, as it is for all but the first of many permutations. For an alpha of each unit, himalaya builds an
array (unit, feature, row) and a product with it for each: that would take minutes, so that units of one alpha are
fitted together, one call for each of the alphas.
"""

import numpy as np
import pytest
import torch

from neuralign.encoders.linear.folds import fold_rows
from neuralign.encoders.linear.refit import Refitter, cheapest
from neuralign.encoders.linear.ridge import RidgeCV

N, P, V, WIDTH = 2000, 1000, 5000, 512


@pytest.mark.parametrize("alphas", [[1000.0], np.logspace(2, 5, 5)], ids=["one", "five"])
def bench_permutation(versus, alphas):
    from himalaya.backend import set_backend
    from himalaya.ridge import Ridge
    from himalaya.scoring import correlation_score

    set_backend("torch")
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((N, P)) * np.arange(1, P + 1) ** -0.5).astype(np.float32)
    Y = (X @ rng.standard_normal((P, V)) + 3 * rng.standard_normal((N, V))).astype(np.float32)
    Y = (Y - Y.mean(0)) / Y.std(0)
    unit_sets = np.array_split(np.arange(V), len(alphas))
    order = np.arange(N)  # rows of the signal, so that scores are not all zero
    order[: N // 2] = rng.permutation(N // 2)
    design, folds = RidgeCV().design(X), fold_rows(5, X, Y, None)
    way = cheapest(design, V, np.asarray(alphas), 1000, 2**29)
    ready = []
    for alpha, units in zip(alphas, unit_sets, strict=True):
        refitter = Refitter(design, "r", way)
        refitter.at(alpha)
        chunks = np.split(units, np.arange(WIDTH, len(units), WIDTH))
        ready += [(refitter, torch.from_numpy(Y[:, chunk])) for chunk in chunks]
    orders = torch.from_numpy(order[None])
    scores = {}

    def ours():
        scores["ours"] = torch.cat([refitter.scores(y, orders)[0] for refitter, y in ready]).numpy()

    def peer():
        permuted = Y[order]
        per_fold = np.empty((len(folds), V))
        for f, (train, test) in enumerate(folds):
            for alpha, units in zip(alphas, unit_sets, strict=True):
                encoder = Ridge(alpha=alpha, fit_intercept=True).fit(X[train], permuted[np.ix_(train, units)])
                predicted = encoder.predict(X[test])
                per_fold[f, units] = correlation_score(permuted[np.ix_(test, units)], predicted).numpy()
        scores["peer"] = per_fold.mean(0)

    many = f"{len(alphas)} alpha" + "s" * (len(alphas) > 1)
    versus(f"one permutation, {N} x {P} x {V}, {many}, 5 folds", ours, peer, "himalaya", rounds=2)
    np.testing.assert_allclose(scores["ours"], scores["peer"], atol=1e-4)
