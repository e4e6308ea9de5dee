"""What encoders of spatial tokens learn of a layer and of the units: its grid, and the rows of exactly those units."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuralign import align
from neuralign.align.best_layer import best_layer
from neuralign.align.readouts import fitted_for
from neuralign.datasets import Recording
from neuralign.encoders import Features, RidgeCV

N, D = 60, 3
IDS = tuple(f"s{i:02d}" for i in range(N))
QUICK = {"bootstrap": 0, "permutations": 0, "ceiling": "none"}


class PlaceOfUnit(RegressorMixin, BaseEstimator):
    """Predicts a unit by the feature and the place that its row of the table names: wrong where either is not known."""

    reads_tokens = True

    def __init__(self, grid=None, shift=0.0):
        self.grid = grid
        self.shift = shift

    def fit(self, X, Y, groups=None, units=None):
        assert len(units) == Y.shape[1] and list(units.index) == list(range(len(units)))
        assert groups is None or len(groups) == len(X)
        self.units_ = units
        return self

    def predict(self, X):
        height, width = self.grid or (1, 1)
        maps = X.reshape(len(X), height, width, -1)
        return np.stack([maps[:, y % height, x % width, f] for y, x, f in self.units_[["y", "x", "f"]].to_numpy()], 1)


class Sized(PlaceOfUnit):
    """The same with a score of its own by which a layer is chosen: high on a grid of two rows."""

    def fit(self, X, Y, groups=None, units=None):
        self.cv_score_ = np.full(Y.shape[1], 1.0 if self.grid == (2, 4) else 0.0)
        return super().fit(X, Y, groups, units)


def made(grid=(2, 4), seed=0):
    """A model with maps, flat features and tokens; responses are single values of the map, one per unit."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((N, grid[0] * grid[1], D)).astype(np.float32)
    flat = rng.standard_normal((N, D)).astype(np.float32)
    units = pd.DataFrame({"region": list("AABBC"), "y": [0, 1, 1, 0, 1], "x": [3, 0, 2, 1, 1], "f": [0, 1, 2, 0, 1]})
    columns = units["y"] * grid[1] + units["x"]
    Y = maps[:, columns, units["f"]].astype(np.float64)
    features = Features("net", IDS, {"maps": maps, "flat": flat}, grids={"maps": grid})
    return features, Recording(Y, pd.DataFrame({"stimulus": IDS, "fold": np.arange(N) % 6}), units, name="made")


def test_a_score_tells_the_encoder_the_grid_of_each_layer_and_the_rows_of_its_units():
    features, brain = made()
    table = align.score(features, brain, PlaceOfUnit(), groups="fold", **QUICK)
    r = table[table["metric"] == "r"].set_index(["layer", "region"])["score"]
    np.testing.assert_allclose(r["maps"], 1, atol=1e-6)
    assert (r["flat"].abs() < 0.5).all()  # one token: nothing of the maps


def test_a_transposed_grid_would_be_noticed():
    features, brain = made()
    wrong = Features("net", IDS, {"maps": features["maps"]}, grids={"maps": (4, 2)})
    table = align.score(wrong, brain, PlaceOfUnit(), **QUICK)
    assert table.loc[table["metric"] == "r", "score"].min() < 0.5


def test_units_follow_those_that_are_fitted_together():
    """Units that never vary, that saw other stimuli, or are constant on the training rows alone shift no row."""
    features, brain = made()
    Y = np.array(brain.read(), np.float64)
    Y[:, 0] = 2.0  # never varies
    Y[10:30, 2] = np.nan  # a pattern of its own
    folds = [(np.arange(20, N), np.arange(20)), (np.arange(40), np.arange(40, N))]
    Y[20:, 3] = 5.0  # constant on the first fold's training rows, and on the second's test rows
    holed = Recording(Y, brain.presentations, brain.units, name="made")
    with pytest.warns(UserWarning, match="1 of 5 units are constant"):
        table = align.score(features, holed, PlaceOfUnit(), cv=folds, **QUICK)
    units = table.attrs["evidence"].units
    r = units[(units["metric"] == "r") & (units["layer"] == "maps")]["score"].to_numpy()
    assert np.isnan(r[0])
    np.testing.assert_allclose(r[[1, 2, 4]], 1, atol=1e-6)


@pytest.mark.parametrize("encoder", [PlaceOfUnit(), Sized()], ids=["by inner folds", "by its own score"])
def test_best_layer_passes_on_the_same(encoder):
    features, brain = made()
    table = best_layer(features, brain, encoder, groups="fold")
    assert (table["layer"] == "maps").all()
    np.testing.assert_allclose(table["score"], 1, atol=1e-6)


def test_encoders_that_read_no_tokens_are_left_alone():
    features, brain = made()
    pipeline = make_pipeline(StandardScaler(), Ridge())
    for encoder in (Ridge(), RidgeCV(score="r2"), pipeline):
        assert fitted_for(encoder, features, "maps") is encoder
    without = Features("net", IDS, dict(features.arrays))  # tokens without a grid are nothing special to them
    pd.testing.assert_frame_equal(
        align.score(features, brain, Ridge(), **QUICK), align.score(without, brain, Ridge(), **QUICK)
    )


def test_the_encoder_that_is_passed_stays_as_it_is():
    features, _ = made()
    encoder = PlaceOfUnit(grid=(8, 1), shift=2.0)
    readout = fitted_for(encoder, features, "maps")
    assert (readout.grid, readout.shift, encoder.grid) == ((2, 4), 2.0, (8, 1))
    assert fitted_for(encoder, features, "flat").grid is None
    ungridded = Features("net", IDS, dict(features.arrays))
    assert fitted_for(encoder, ungridded, "maps").grid == (8, 1)  # its own, where the features have none


def test_tokens_without_a_grid_are_refused_before_any_layer_is_fitted():
    features, brain = made()

    class Never(PlaceOfUnit):
        def fit(self, X, Y, groups=None, units=None):
            raise AssertionError("fitted")

    arrays = {"flat": features["flat"], "tokens": features["maps"]}
    ungridded = Features("net", IDS, arrays)
    message = (
        r"layer 'tokens' of net has 8 tokens without a grid, and Never needs .* reduce=6 .* "
        r"grids=\{'tokens': \(height, width\)\}\) with height \* width = 8"
    )
    for scored in (align.score, best_layer):
        with pytest.raises(ValueError, match=message):
            scored(ungridded, brain, Never())
    wrong = Features("net", IDS, arrays, grids={"tokens": (3, 3)})
    with pytest.raises(ValueError, match=r"'tokens' of net has shape \(60, 8, 3\), and the grid \(3, 3\) has 9 places"):
        align.score(wrong, brain, Never())


def test_an_ensemble_reads_layers_side_by_side():
    """Layers as one matrix, cut by `spaces`: the ensemble takes for each unit what its own layer says."""
    from neuralign.encoders.routing.ensemble import LayerEnsemble
    from neuralign.encoders.spatial.ridge import RidgeReadout

    rng = np.random.default_rng(0)
    early, late = rng.standard_normal((N, 4, 2)), rng.standard_normal((N, 5))
    Y = np.stack([early.mean(1)[:, 0], late[:, 0]], 1) + 0.05 * rng.standard_normal((N, 2))
    brain = Recording(Y, pd.DataFrame({"stimulus": IDS}), pd.DataFrame({"region": ["A", "B"]}))
    side_by_side = np.hstack([early.reshape(N, -1), late]).astype(np.float32)
    ensemble = LayerEnsemble(
        [("pooled", RidgeReadout("pooled")), ("flat", RidgeReadout("flat"))],
        spaces={"early": 8, "late": 5},
        grids={"early": (2, 2)},
    )
    table = align.score(Features("net", IDS, {"all": side_by_side}), brain, ensemble, **QUICK)
    assert (table.loc[table["metric"] == "r", "score"] > 0.9).all()


def test_regions_of_the_router_are_those_that_are_fitted_together():
    """Regions that saw different stimuli are fitted apart, each with its own queries and none of a region not there."""
    import torch

    from neuralign.encoders.routing.attention import AttentionRouter

    seen = []

    class Router(AttentionRouter):
        def fit(self, X, Y, groups=None, units=None):
            super().fit(X, Y, groups, units)
            seen.append((Y.shape[1], self.regions_, self.grid_))
            return self

    features, brain = made()
    Y = np.array(brain.read(), np.float64)
    Y[::3, 2:] = np.nan  # regions B and C
    brain = Recording(Y, brain.presentations, brain.units, name="made")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        maps = Features("net", IDS, {"maps": features["maps"]}, grids=features.grids)
        router = Router(heads=1, lr=1e-2, epochs=2, device="cpu")
        table = align.score(maps, brain, router, cv=2, **QUICK)
    finally:
        torch.set_num_threads(threads)
    assert sorted({(n, tuple(names)) for n, names, _ in seen}) == [(2, ("A",)), (3, ("B", "C"))]
    assert {grid for *_, grid in seen} == {(2, 4)}
    assert table["score"].notna().all()
