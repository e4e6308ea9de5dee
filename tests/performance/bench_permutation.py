"""One permutation at a fixed alpha, beside himalaya's ridge refitted fold by fold (``make bench``).

Ours has been set up, as it is for all but the first of many permutations. All units share one alpha: with an array of
them himalaya builds an array (unit, feature, row) and a product with it for each, which would take minutes.
"""

import numpy as np
import torch

from neuralign.encoders.linear.folds import fold_rows
from neuralign.encoders.linear.refit import Refitter, cheapest
from neuralign.encoders.linear.ridge import RidgeCV

N, P, V, WIDTH, ALPHA = 2000, 1000, 5000, 512, 1000.0


def bench_permutation(versus):
    from himalaya.backend import set_backend
    from himalaya.ridge import Ridge
    from himalaya.scoring import correlation_score

    set_backend("torch")
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((N, P)) * np.arange(1, P + 1) ** -0.5).astype(np.float32)
    Y = (X @ rng.standard_normal((P, V)) + 3 * rng.standard_normal((N, V))).astype(np.float32)
    Y = (Y - Y.mean(0)) / Y.std(0)
    order = np.arange(N)  # rows of the signal, so that scores are not all zero
    order[: N // 2] = rng.permutation(N // 2)
    design, folds = RidgeCV().design(X), fold_rows(5, X, Y, None)
    refitter = Refitter(design, "r", cheapest(design, V, np.array([ALPHA]), 1000, 2**29))
    refitter.at(ALPHA)
    blocks = [torch.from_numpy(Y[:, start : start + WIDTH].copy()) for start in range(0, V, WIDTH)]
    orders = torch.from_numpy(order[None])
    scores = {}

    def ours():
        scores["ours"] = torch.cat([refitter.scores(y, orders)[0] for y in blocks]).numpy()

    def peer():
        permuted = Y[order]
        per_fold = np.empty((len(folds), V))
        for f, (train, test) in enumerate(folds):
            encoder = Ridge(alpha=ALPHA, fit_intercept=True).fit(X[train], permuted[train])
            per_fold[f] = correlation_score(permuted[test], encoder.predict(X[test])).numpy()
        scores["peer"] = per_fold.mean(0)

    versus(f"one permutation, {N} x {P} x {V}, 5 folds", ours, peer, "himalaya", rounds=1)
    np.testing.assert_allclose(scores["ours"], scores["peer"], atol=1e-4)
