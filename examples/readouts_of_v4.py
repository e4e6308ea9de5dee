"""Which readout of a small network's maps predicts neurons of macaque V4, and which are told apart from ridge.

    NEURALIGN_DATA=/path/to/data python examples/readouts_of_v4.py [FOLDER]

Every readout of the library on the same spatial tokens (8 x 8 places of three stages of a trained ResNet-20), in the
same five outer folds of two sessions of Cowley et al. (2023). Penalties, fields, learning rates and epochs are chosen
within the training rows, and so is the stage ("chosen") of every neuron; "ensemble" is the mean of all readouts and
stages, weighted for every neuron by their validation r as in `LayerEnsemble`, once of all and once of the closed forms,
whose validation is not of a tenth of the training rows but of all of them. Two more encoders learned what neurons
have in common from the other session, whose images and neurons are others.

The table has one row per session, readout and stage: mean over neurons of the held-out r with its 95 % interval over
stimuli, the ceiling, and the difference to ridge regression on all tokens ("flat") of the same stage, with its own
interval from the same draws.

An hour on one core. Predictions are kept in FOLDER (default readouts_of_v4), where a run that is stopped goes on;
the table is written to readouts_of_v4.csv in it. Needs the folders cowley_v4 and weights_cifar_resnet below
NEURALIGN_DATA, as reproduce_v4_benchmark.py does.
"""

import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone

from neuralign import align, datasets, encoders
from neuralign.align.crossval import outer_folds
from neuralign.align.inference import basic_interval
from neuralign.align.prediction import bootstrap_means, unit_scores
from neuralign.align.readouts import fitted_for
from neuralign.encoders.routing.ensemble import softmax_weights

SESSIONS = ("210325", "201025")
STAGES = ("layer1", "layer2", "layer3")
COSTLY = ("attention, unit", "in context")  # minutes a fit: at layer2 alone
CLOSED = ("flat", "pooled", "pca", "pooling grid")  # whose validation is of all training rows
BOOTSTRAP = 1000
SEED = 0


def readouts():
    """Everything that is compared, by name; "flat" is what the others are compared with."""
    return {
        "flat": encoders.RidgeReadout("flat"),
        "pooled": encoders.RidgeReadout("pooled"),
        "pca": encoders.RidgeReadout("pca"),
        "pooling grid": encoders.PoolingGridReadout(),
        "factorized": encoders.FactorizedReadout(),
        "gaussian": encoders.GaussianReadout(),
        "semantic": encoders.SemanticTransformerReadout(),
        "attention, region": encoders.AttentionRouter(query="region"),
        "attention, unit": encoders.AttentionRouter(query="unit"),
        "population prior": encoders.PopulationPriorRidge(max_dimension=128),
    }


def learned_elsewhere():
    """What learns from the neurons of the other session, and only then sees the training rows of this one."""
    return {
        "prior of other neurons": encoders.PopulationPriorRidge(max_dimension=256),
        "in context": encoders.InContextEncoder(width=64, layers=2, steps=(500, 1000, 500), units_per_step=16),
    }


def held_out(encoder, tokens, Y, units, folds):
    """Predictions (stimulus, unit) of held-out rows; validation r (fold, unit) within the training rows; seconds."""
    predicted, within, begun = np.full(Y.shape, np.nan), np.full((len(folds), Y.shape[1]), np.nan), time.perf_counter()
    for k, (train, test) in enumerate(folds):
        table = {"units": units} if getattr(encoder, "reads_tokens", False) else {}
        fitted = clone(encoder).fit(tokens[train], Y[train], **table)
        predicted[test] = fitted.predict(tokens[test])
        within[k] = getattr(fitted, "validation_r_", np.nan)
    return predicted, within, time.perf_counter() - begun


def conditioned(encoder, elsewhere, tokens, Y, folds):
    """As `held_out`, for an encoder that learned from the neurons and images of the other session before."""
    predicted, begun = np.full(Y.shape, np.nan), time.perf_counter()
    learn = encoder.pretrain if hasattr(encoder, "pretrain") else encoder.fit
    learned = learn(*elsewhere)
    for train, test in folds:
        predicted[test] = learned.condition(tokens[train], Y[train]).predict(tokens[test])
    return predicted, np.full((len(folds), Y.shape[1]), np.nan), time.perf_counter() - begun


def kept(path, compute):
    """What `compute` returns, or what it returned in an earlier run."""
    if not path.exists():
        predicted, within, seconds = compute()
        draft = path.with_suffix(".draft.npz")
        np.savez(draft, predicted=predicted.astype(np.float32), within=within, seconds=seconds)
        draft.replace(path)
    stored = np.load(path)
    return stored["predicted"], stored["within"], float(stored["seconds"])


def chosen_stage(cells, folds):
    """For each neuron and fold the prediction of the stage with the highest validation r."""
    predicted = np.array(cells[0][0])
    for k, (_, test) in enumerate(folds):
        best = np.argmax([np.nan_to_num(within[k], nan=-1) for _, within, _ in cells], axis=0)
        for i, (stage, _, _) in enumerate(cells):
            predicted[np.ix_(test, best == i)] = stage[np.ix_(test, best == i)]
    return predicted


def mixed(cells, folds):
    """What a `LayerEnsemble` of these fits predicts: for each neuron and fold, weights by validation r."""
    predicted = np.zeros(cells[0][0].shape)
    for k, (_, test) in enumerate(folds):
        weights = softmax_weights(np.stack([within[k] for _, within, _ in cells]), temperature=40.0)
        predicted[test] = sum(weight * one[test] for weight, (one, _, _) in zip(weights, cells, strict=True))
    return predicted


def rows_of(session, name, by_stage, reference, Y, tests, draws, ceilings):
    """Rows of the table for one readout: by stage, predictions and seconds."""
    for stage, (predicted, seconds) in by_stage.items():
        r = unit_scores(predicted, Y, tests, "r")
        resampled = bootstrap_means(predicted, Y, tests, "r", draws)
        low, high = basic_interval(r.mean(), resampled, "r")
        other = reference[stage]
        against = r.mean() - unit_scores(other, Y, tests, "r").mean()
        differences = resampled - bootstrap_means(other, Y, tests, "r", draws)
        below, above = 2 * against - np.quantile(differences, [0.975, 0.025])
        limit = np.sqrt(ceilings)
        scored = np.isfinite(limit) & (limit > 0)
        yield {
            "session": session,
            "readout": name,
            "stage": stage,
            "r": r.mean(),
            "ci_low": low,
            "ci_high": high,
            "ceiling": limit[scored].mean() if scored.any() else np.nan,
            "normalised": r[scored].mean() / limit[scored].mean() if scored.any() else np.nan,
            "minus_flat": against,
            "minus_flat_low": below,
            "minus_flat_high": above,
            "seconds": seconds,
        }


def shown_and_recorded(session, stages):
    """Recording, its mean over repeats, and features of the stages in the order of its rows."""
    brain = datasets.load("cowley-v4", session=session)
    features = encoders.extract("resnet20-cifar", brain.stimuli, list(stages), reduce=8)
    mean = brain.average_repeats()
    stimuli = mean.presentations["stimulus"].tolist()
    rows = features.rows(stimuli)
    arrays = {stage: np.asarray(features[stage])[rows] for stage in stages}
    return brain, mean, encoders.Features(features.model, tuple(stimuli), arrays, features.grids)


def flat(tokens):
    return tokens.reshape(len(tokens), -1)


def table_of(session, folder, names=None, stages=STAGES):
    """The table of one session."""
    brain, mean, features = shown_and_recorded(session, stages)
    for_folds, for_ceiling, for_draws, _ = np.random.default_rng(SEED).spawn(4)  # as in align.score
    folds = outer_folds(mean, 5, None, for_folds)
    tests, Y = [test for _, test in folds], np.asarray(mean.read())
    repeated = (mean.presentations["n_repeats"] >= 2).any()
    ceilings = align.split_half_ceiling(brain, seed=for_ceiling) if repeated else np.full(mean.n_units, np.nan)
    draws = for_draws.multinomial(len(Y), np.full(len(Y), 1 / len(Y)), size=BOOTSTRAP)
    [other] = set(SESSIONS) - {session}
    reference, rows, members = {}, [], {}
    for name, encoder in {**readouts(), **learned_elsewhere()}.items():
        if names is not None and name not in names:
            continue
        cells = {}
        for stage in [stage for stage in stages if name not in COSTLY or stage == "layer2"]:
            path = folder / f"{session} {name} {stage}.npz"

            def compute(name=name, encoder=encoder, stage=stage):
                if name in learned_elsewhere():
                    _, theirs, shown = shown_and_recorded(other, [stage])
                    elsewhere = flat(shown[stage]), np.asarray(theirs.read())
                    return conditioned(encoder, elsewhere, flat(features[stage]), Y, folds)
                readout = fitted_for(encoder, features, stage)
                reads_tokens = getattr(encoder, "reads_tokens", False)
                tokens = features[stage] if reads_tokens else flat(features[stage])
                return held_out(readout, tokens, Y, mean.units, folds)

            cells[stage] = kept(path, compute)
        shown = {stage: (predicted, seconds) for stage, (predicted, _, seconds) in cells.items()}
        if np.isfinite([within for _, within, _ in cells.values()]).any():
            members[name] = list(cells.values())
            if len(cells) == len(stages):
                seconds = sum(seconds for *_, seconds in cells.values())
                shown["chosen"] = chosen_stage(list(cells.values()), folds), seconds
        if name == "flat":
            reference = {stage: predicted for stage, (predicted, _) in shown.items()}
        rows += rows_of(session, name, shown, reference, Y, tests, draws, ceilings)
        print(pd.DataFrame(rows[-len(shown) :]).round(3).to_string(index=False, header=name == "flat"), flush=True)
    for name, mixture in (("ensemble", list(members)), ("ensemble, closed forms", CLOSED)):
        fits = [cell for member in mixture for cell in members.get(member, [])]
        shown = {"chosen": (mixed(fits, folds), sum(seconds for *_, seconds in fits))}
        rows += rows_of(session, name, shown, reference, Y, tests, draws, ceilings)
    return pd.DataFrame(rows)


def verdict(table):
    """Which readouts are above or below flat ridge, at the chosen stage or, where none is chosen, at layer2."""
    for session, rows in table.groupby("session", sort=False):
        chosen = rows["stage"] == "chosen"
        other = (rows["stage"] == "layer2") & ~rows["readout"].isin(rows.loc[chosen, "readout"])
        rows = rows[(chosen | other) & (rows["readout"] != "flat")]
        above, below = rows[rows["minus_flat_low"] > 0], rows[rows["minus_flat_high"] < 0]
        between = rows.drop([*above.index, *below.index])
        for words, side in (("above", above), ("below", below), ("not told apart from", between)):
            named = [
                f"{row.readout} at {row.stage} {row.minus_flat:+.3f} "
                f"({row.minus_flat_low:+.3f} to {row.minus_flat_high:+.3f})"
                for row in side.sort_values("minus_flat", ascending=False).itertuples()
            ]
            yield f"session {session}, {words} flat ridge: {', '.join(named) or 'none'}"


if __name__ == "__main__":
    root = Path(os.environ.get("NEURALIGN_DATA", ""))
    if not ((root / "cowley_v4").is_dir() and (root / "weights_cifar_resnet").is_dir()):
        print("skipped: NEURALIGN_DATA names no folder with cowley_v4 and weights_cifar_resnet")
        sys.exit()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "readouts_of_v4")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # many small products: more threads wait for each other
    warnings.simplefilter("once")
    table = pd.concat([table_of(session, folder) for session in SESSIONS], ignore_index=True)
    table.drop(columns="seconds").round(4).to_csv(folder / "readouts_of_v4.csv", index=False)
    print("\n".join(["", *verdict(table)]))
