"""The attention router: tokens routed to regions, or to units, by what they hold and where they lie."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ...datasets.errors import unknown
from ..device import pick_device
from ..spatial.base import Finished, GradientReadout, Setup
from ..spatial.batches import Feed
from ..spatial.parameters import require_number, require_whole
from ..spatial.tokens import Tokens
from ..spatial.training import Fitted
from .heads import (
    ClosedForm,
    RefittedResponses,
    closed_form_heads,
    head_alphas,
    moments,
    refitted,
    routed_features,
)
from .maps import RoutingMaps
from .modules import Queries, RegionHeads, RoutedResponses, Router, UnitHeads
from .positions import sincos
from .regions import canonical_order, own_patterns, patterns, region_mask

QUERIES = ("region", "unit", "low-rank")
POSITIONS = ("sincos", "learned", "map", "none")
HEADS = ("auto", "ridge", "sgd")


class AttentionRouter(GradientReadout):
    """Predicts units from tokens that attention routes to their regions.

    Each region has a query, which no image changes. In every head it weighs the tokens of an image by a softmax over
    ``query . key``; the tokens pooled with these weights are projected to the token of the region, and each unit is a
    linear map of the token of its region. What is routed thus depends on the image, as no linear readout's does: a
    region can read the attributes of its preferred object wherever in the image that lies.

    Keys and values are folded into the queries where that is cheaper, so that neither is ever formed; units of a
    region share one product. Once the routing has converged, the heads are fitted again in closed form (`head`).

    Parameters
    ----------
    query : {"region", "unit", "low-rank"}
        One query for each region; for each unit, which retinotopic units of one region need; or for each unit as a
        mixture of `rank` vectors.
    regions : str, array of labels (unit,), or array or DataFrame of bool (region, unit)
        Regions of the units: a column of the table `units` that `fit` is given, without which all units are one region,
        "all"; or the regions themselves. Units without a label share a last region, "none".
    heads : int or None
        Heads of attention, which divide the width. None takes 4, or the largest number below that does.
    width : int or None
        Width of queries and routed tokens; None is the number of features.
    rank : int
        For "low-rank" queries; no more than units are used.
    content : bool
        Whether what a token holds decides where it goes; otherwise its place alone does.
    position : {"sincos", "learned", "map", "none"}
        What is added to the keys: sines and cosines of row and column; free vectors; in their stead, a free logit of
        each place for each query and head; or nothing, which makes the order of tokens meaningless.
    ffn : int
        Width of a feed-forward layer after attention, between layer normalisations; 0 leaves out all three, and routed
        tokens are linear in the pooled ones.
    overlap : {"mean", "sum", "first"}
        Token of a unit in several regions: the mean of theirs, their sum (as published), or that of the first region.
    head : {"auto", "ridge", "sgd"}
        Heads of the units: as trained by gradients ("sgd"); fitted in closed form once the routing is trained
        ("ridge"); or "auto", for region queries whichever of both predicts the validation rows of a unit better, and
        as trained for unit queries, each of which would need a decomposition of its own, and for counts.
    head_features : {"pooled", "token"}
        What heads in closed form see: the tokens as each head pools them, or the routed token.
    dropout : float
        Of attention, routed tokens and feed-forward layer while training; above zero nothing is folded.
    fold : bool or "auto"
        Whether keys and values are folded into the queries; "auto" takes what multiplies less. The answers are equal.
    grid : (height, width) or None
        Places of the tokens, row by row; needed for positions "sincos", and for maps.
    loss : {"mse", "correlation", "poisson"}
    lr : float, sequence of float or None
        Learning rate of AdamW; of several, the one with the best validation r. None tries 1e-3, 3e-3 and 1e-2, or from
        256 features on 2e-4, 5e-4 and 2e-3.
    weight_decay, epochs, batch_size, patience, clip, halve_after
        Of training: see `Training`. `clip` is the norm that gradients are clipped to, `halve_after` the number of
        epochs after which the learning rate is halved.
    validation : float or (training rows, validation rows)
        Stimuli that training stops by.
    alphas : array of float or None
        Penalties of heads in closed form, as of `RidgeCV`; with "pooled" they count for the heads together.
    precision : {"float32", "bfloat16", "auto"}
    compile : bool
    checkpoint : path or None
        File that training goes on from, written after each epoch.
    seed : int
    device : str
    verbose : bool or None

    Attributes
    ----------
    regions_ : tuple of str
        What each query stands for: regions, or units by their number.
    mask_ : ndarray of bool, shape (region, unit)
        Region queries alone.
    head_ : ndarray of str, shape (unit,)
        "ridge" or "sgd"; empty for units that are left out.
    head_alpha_ : ndarray, shape (unit,)
        Penalty of the heads in closed form, NaN for the others.
    heads_ : int
    module_, validation_r_, history_, lr_, lr_scores_, grid_, n_tokens_, token_features_
        See `GradientReadout`.

    Notes
    -----
    The published layer starts from a target of zeros and has a bias of keys: the first leaves a constant in the
    queries, the second vanishes in the softmax, and neither is here. `published` gives the published settings.

    Penalties of heads in closed form are chosen by the validation rows, whose responses the routing was not trained
    on. Folds of the training rows would reward what the routing has fitted to them.

    References
    ----------
    Adeli, H., Minni, S. & Kriegeskorte, N. (2025). Transformer brain encoders explain human high-level visual
    responses. NeurIPS. arXiv:2505.17329.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tokens = rng.standard_normal((60, 9, 8)).astype("float32")           # (stimulus, token, feature)
    >>> Y = tokens.mean(1) @ rng.standard_normal((8, 4))
    >>> router = AttentionRouter(regions=["V4", "V4", "IT", "IT"], grid=(3, 3), epochs=2, lr=0.01).fit(tokens, Y)
    >>> router.regions_, router.predict(tokens).shape
    (('V4', 'IT'), (60, 4))
    """

    def __init__(
        self,
        query="region",
        regions="region",
        heads=None,
        width=None,
        rank=64,
        content=True,
        position="sincos",
        ffn=0,
        overlap="mean",
        head="auto",
        head_features="pooled",
        dropout=0.0,
        fold="auto",
        grid=None,
        loss="mse",
        lr=None,
        weight_decay=1e-4,
        epochs=60,
        batch_size=128,
        patience=8,
        validation=0.1,
        clip=1.0,
        halve_after=None,
        alphas=None,
        precision="float32",
        compile=False,
        checkpoint=None,
        seed=0,
        device="auto",
        verbose=None,
    ):
        self.query = query
        self.regions = regions
        self.heads = heads
        self.width = width
        self.rank = rank
        self.content = content
        self.position = position
        self.ffn = ffn
        self.overlap = overlap
        self.head = head
        self.head_features = head_features
        self.dropout = dropout
        self.fold = fold
        self.grid = grid
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.validation = validation
        self.clip = clip
        self.halve_after = halve_after
        self.alphas = alphas
        self.precision = precision
        self.compile = compile
        self.checkpoint = checkpoint
        self.seed = seed
        self.device = device
        self.verbose = verbose

    @classmethod
    def published(cls, **changes: Any) -> Self:
        """A router with the settings of the public code of Adeli et al. (2025), but for those that are changed."""
        settings: dict[str, Any] = {
            "heads": 16, "ffn": 1024, "overlap": "sum", "head": "sgd", "dropout": 0.1, "lr": 5e-4, "clip": 0.1,
            "halve_after": 3, "epochs": 15, "batch_size": 32,
        }  # fmt: skip
        return cls(**settings | changes)

    def _needs_grid(self) -> str | None:
        return "position='sincos'" if self.position == "sincos" else None

    def _default_rates(self, setup: Setup) -> tuple[float, ...]:
        return (1e-3, 3e-3, 1e-2) if setup.n_features < 256 else (2e-4, 5e-4, 2e-3)

    def fit(self, X, Y, groups=None, units=None) -> Self:
        self._require_settings()
        return super().fit(X, Y, groups, units)

    fit.__doc__ = GradientReadout.fit.__doc__

    def _require_settings(self) -> None:
        """Refuse settings that no data can mend."""
        for name, known in (("query", QUERIES), ("position", POSITIONS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise ValueError(unknown(name, getattr(self, name), known))
        head_alphas(self.alphas, self.head_features, 1)
        require_whole("ffn", self.ffn, 0)
        require_whole("rank", self.rank, 1)
        require_number("dropout", self.dropout, zero=True)
        if self.dropout >= 1:
            raise ValueError(f"dropout={self.dropout!r}: expected a share from 0 to below 1")
        if self.fold not in (True, False, "auto"):
            raise ValueError(f"fold={self.fold!r}: expected True, False or 'auto'")
        if self.dropout and self.fold is True:
            raise ValueError(
                f"fold=True with dropout={self.dropout:g}: folded attention has no weights to drop; take fold='auto', "
                "or dropout=0"
            )
        if not self.content and self.position == "none":
            raise ValueError(
                "content=False with position='none' leaves nothing to route by: every token would weigh the same; take "
                "RidgeReadout(reduce='pooled') for that"
            )
        if not self.content and self.dropout:
            raise ValueError(f"content=False with dropout={self.dropout:g}: routes of places alone take dropout=0")
        if self.head == "ridge" and self.loss == "poisson":
            raise ValueError("head='ridge' with loss='poisson': counts take heads that are trained, head='sgd'")

    def _sizes(self, n_features: int) -> tuple[int, int]:
        """Width and number of heads."""
        width = n_features if self.width is None else self.width
        require_whole("width", width, 1)
        if self.heads is None:
            return width, max(heads for heads in (1, 2, 3, 4) if width % heads == 0)
        require_whole("heads", self.heads, 1)
        if width % self.heads:
            divisors = [str(heads) for heads in range(1, width + 1) if width % heads == 0]
            raise ValueError(
                f"heads={self.heads} do not divide width={width}; take one of {', '.join(divisors[:12])}"
                + (", …" if len(divisors) > 12 else "")
            )
        return width, self.heads

    def _build(self, setup: Setup, lr: float) -> nn.Module:
        width, heads = self._sizes(setup.n_features)
        order = rank = None
        if self.query == "region":
            names, mask = self._kept_regions(setup)
            self.regions_, self.mask_ = names, np.zeros((len(names), setup.n_all), bool)
            self.mask_[:, setup.kept] = mask
            self._patterns = patterns(mask, self.overlap)
            order = canonical_order(mask)
        else:
            self.regions_ = tuple(map(str, setup.kept))
            self._patterns = own_patterns(setup.n_units)
            rank = None if self.query == "unit" else min(self.rank, setup.n_units)
        self.heads_ = heads
        draw = setup.generator
        router = Router(
            Queries(len(self.regions_), width, rank, draw, order),
            setup.n_features,
            setup.n_tokens,
            width,
            heads,
            draw,
            content=bool(self.content),
            position=self.position,
            places=sincos(setup.grid, setup.n_features) if self.position == "sincos" and setup.grid else None,
            ffn=self.ffn,
            dropout=float(self.dropout),
            fold=self.fold,
        )
        if self.query == "region":
            return RoutedResponses(router, RegionHeads(width, self._patterns, setup.bias, draw))
        return RoutedResponses(router, UnitHeads(width, setup.bias, draw))

    def _kept_regions(self, setup: Setup) -> tuple[tuple[str, ...], np.ndarray]:
        """Regions of the units that can be fitted; those of which no unit can be are left out."""
        if isinstance(self.regions, str):
            names, mask = region_mask(self.regions, setup.units, setup.n_units)
        else:
            names, mask = region_mask(self.regions, None, setup.n_all)
            mask = mask[:, setup.kept]
        used = np.flatnonzero(mask.any(1))
        return tuple(names[i] for i in used), mask[used]

    def _finish(self, module: nn.Module, setup: Setup, fitted: Fitted) -> Finished:
        assert isinstance(module, RoutedResponses)
        self.head_ = np.full(setup.n_all, "", dtype="<U5")
        self.head_alpha_ = np.full(setup.n_all, np.nan)
        self.head_[setup.kept] = "sgd"
        trained_only = self.loss == "poisson" or self.query != "region"
        if self.head == "sgd" or (self.head == "auto" and trained_only):
            return Finished(module, fitted.validation_r)
        rows = np.concatenate([setup.train_rows, setup.validation_rows])
        n_train = len(setup.train_rows)
        known = np.ones((len(rows), setup.n_units), bool) if setup.known is None else setup.known[rows].cpu().numpy()
        cv = (np.arange(n_train), np.arange(n_train, len(rows)))
        Y = setup.Y[rows].cpu().numpy()
        heads = self._closed_form(module.router, setup.tokens, setup.standard, rows, Y, known, cv, self.alphas)
        chosen = ~np.isnan(heads.alpha)
        if self.head == "auto":
            r = fitted.validation_r
            chosen &= (heads.r >= r) | np.isnan(r)
        if not chosen.any():
            return Finished(module, fitted.validation_r)
        self.head_[setup.kept[chosen]] = "ridge"
        self.head_alpha_[setup.kept[chosen]] = heads.alpha[chosen]
        module = refitted(module, self._patterns, heads, chosen, self.head_features)
        return Finished(module, np.where(chosen, heads.r, fitted.validation_r), chosen)

    def _closed_form(
        self,
        router: Router,
        tokens: Tokens,
        standard: tuple[Tensor, Tensor],
        rows: np.ndarray,
        Y: np.ndarray,
        known: np.ndarray,
        cv: Any,
        alphas: Any,
    ) -> ClosedForm:
        """Heads in closed form from some rows of tokens, whose responses are Y."""
        device, kind = pick_device(self.device), self.head_features
        router = router.to(device).eval()
        width = router.heads * router.n_features if kind == "pooled" else router.width
        features = routed_features(router, self._patterns, Feed(tokens, standard, device), tokens, rows, kind)
        penalties = head_alphas(alphas, kind, router.heads)
        return closed_form_heads(features, width, self._patterns.members, Y, known, cv, penalties, str(device))

    def routing(self, X, reduce: str | None = "mean", stimulus_ids: Any = None) -> RoutingMaps:
        """What each query reads of each stimulus.

        Parameters
        ----------
        X : array, memory map, h5py.Dataset or TokenStore
            Tokens, as for `predict`.
        reduce : "mean" or None
            The mean over heads; or every head.
        stimulus_ids : sequence of str, or None
            Names of the stimuli; None numbers them.

        Returns
        -------
        RoutingMaps
            Weights (stimulus, query, head, y, x), each map adding up to one.

        Raises
        ------
        ValueError
            If tokens or names do not match.
        """
        check_is_fitted(self)
        if reduce not in ("mean", None):
            raise ValueError(unknown("reduce", reduce, ("mean", None)))
        router = self._routed().router
        tokens = self._checked_tokens(X)
        names = tuple(map(str, range(tokens.n) if stimulus_ids is None else stimulus_ids))
        if len(names) != tokens.n:
            raise ValueError(f"stimulus_ids holds {len(names)} names for {tokens.n} stimuli; expected one for each")
        heads, scales = 1 if reduce else self.heads_, self._scales
        weights = np.empty((tokens.n, len(self.regions_), heads, tokens.n_tokens), np.float32)
        with torch.no_grad():
            for rows in tokens.chunks(np.arange(tokens.n)):
                parts = len(rows) * router.n_queries * router.heads // 4096
                for row in np.array_split(rows, min(max(parts, 1), len(rows))):
                    found = router.weights((tokens.batch(row) - scales["mean"]) * scales["inverse"])
                    weights[row] = (found.mean(2, keepdim=True) if reduce else found).numpy()
        height, width = tokens.grid or (1, tokens.n_tokens)
        maps = weights.reshape(tokens.n, len(self.regions_), heads, height, width)
        return RoutingMaps(maps, self.regions_, names, tokens.grid, reduced=bool(reduce))

    def _routed(self) -> RoutedResponses | RefittedResponses:
        """The module of the fit."""
        if not isinstance(self.module_, RoutedResponses | RefittedResponses):
            raise ValueError("no unit of the fit had responses to be trained on, so that there is nothing to route by")
        return self.module_

    def query_similarity(self, kind: str = "query", X: Any = None) -> pd.DataFrame:
        """How alike regions route.

        Parameters
        ----------
        kind : {"query", "map"}
            Cosine between what queries look for in the keys, all heads side by side; or correlation of the maps (means
            over heads) that they make of X, over stimuli and cells: `RoutingMaps.similarity`.
        X : tokens
            For "map".

        Returns
        -------
        DataFrame, region by region

        Raises
        ------
        ValueError
            If the kind is unknown, X is missing, or there are no keys to look into.
        """
        check_is_fitted(self)
        if kind not in ("query", "map"):
            raise ValueError(unknown("kind", kind, ("query", "map")))
        if kind == "map":
            if X is None:
                raise ValueError("kind='map' compares maps of stimuli: pass X, the tokens of some")
            return self.routing(X).similarity()
        router = self._routed().router
        with torch.no_grad():
            u, s = router.routes()
        found = s if u is None else u
        assert found is not None
        looks = found.double().unflatten(0, (router.heads, router.n_queries)).transpose(0, 1).flatten(1)
        looks = looks / looks.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        similar = (looks @ looks.T).numpy()
        return pd.DataFrame(similar, index=list(self.regions_), columns=list(self.regions_))

    def refit_heads(self, X, Y, alphas: Any = None, rows: Any = None) -> Self:
        """Heads in closed form from other responses of the same units, the routing as it is.

        Parameters
        ----------
        X : array, memory map, h5py.Dataset or TokenStore
            Tokens.
        Y : array, shape (stimulus, unit)
            Responses of the units of the fit; NaN where one is missing.
        alphas : array of float or None
            Penalties; None takes those of the encoder.
        rows : (training rows, validation rows), or None
            Rows whose fit chooses the penalty of a unit by the others; None takes five contiguous folds. Folds of rows
            that the routing was trained on are optimistic about it, and choose too small penalties.

        Returns
        -------
        AttentionRouter
            A new one. Units with too few known rows keep the heads that they had.

        Raises
        ------
        ValueError
            If shapes do not match, or the loss is "poisson".
        """
        check_is_fitted(self)
        if self.loss == "poisson":
            raise ValueError("loss='poisson': counts take heads that are trained; heads in closed form know no link")
        module, new = copy.deepcopy(self._routed()), copy.copy(self)
        tokens = self._checked_tokens(X)
        responses = new._checked_responses(Y, tokens.n)
        if responses.shape[1] != len(self.head_):
            raise ValueError(f"Y has {responses.shape[1]} units and the fit had {len(self.head_)}; expected the same")
        kept = self._scales["kept"].numpy()
        responses = responses[:, kept].astype(np.float64)
        known = ~np.isnan(responses)
        mean, std = moments(responses, known)
        standard_Y = np.where(known, (responses - mean) / std, 0.0)
        scales, cv = self._scales, 5 if rows is None else tuple(np.asarray(side) for side in rows)
        standard = (scales["mean"], 1 / scales["inverse"])
        penalties = self.alphas if alphas is None else alphas
        rows = np.arange(tokens.n)
        heads = self._closed_form(module.router, tokens, standard, rows, standard_Y, known, cv, penalties)
        chosen = ~np.isnan(heads.alpha)
        new.module_ = refitted(module, self._patterns, heads, chosen, self.head_features)
        slope, offset = (scales[name].numpy().copy() for name in ("slope", "offset"))
        slope[chosen], offset[chosen] = std[chosen], mean[chosen]
        new._scales = scales | {"slope": torch.from_numpy(slope), "offset": torch.from_numpy(offset)}
        new.head_, new.head_alpha_ = self.head_.copy(), self.head_alpha_.copy()
        new.head_[kept[chosen]], new.head_alpha_[kept[chosen]] = "ridge", heads.alpha[chosen]
        r = np.atleast_1d(self.validation_r_).copy()
        r[kept[chosen]] = heads.r[chosen]
        new.validation_r_ = new._per_unit(r)
        return new
