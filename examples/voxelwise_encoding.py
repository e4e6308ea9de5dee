"""Voxelwise encoding from end to end: an alpha per voxel, honest scores, ceilings, and the best layer of each voxel.

    python examples/voxelwise_encoding.py [FOLDER]

Fifteen seconds on two cores; writes voxelwise_encoding.png and voxelwise_weights.npy. Replace `brain` by your own data:

    brain = datasets.from_arrays(responses, images, regions=regions, stimulus_ids=stimulus_ids)
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from neuralign import align, datasets, encoders

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
brain = datasets.simulate.visual_cortex(n_stimuli=240, n_units=320, seed=1)
print(brain)

# Features join responses by stimulus id; test stimuli are in no training row, however often they were repeated.
train, test = brain.train_test(test=0.25, seed=0)
train, test = train.average_repeats(), test.average_repeats()
gabor = encoders.extract("gabor", brain.stimuli, reduce=6)
X = gabor["energy"].reshape(len(gabor.stimulus_ids), -1)
X_train, X_test = (X[gabor.rows(side.presentations["stimulus"].tolist())] for side in (train, test))

# Folds of whole runs: what the stimuli of a run have in common is on one side. `nested` scores each fold at the alpha
# that the others choose, so that these scores owe nothing to the choice; the weights go to a file as voxels pass by.
runs = np.arange(train.n_presentations) // 18
encoder = encoders.RidgeCV(
    alphas=np.logspace(1, 7, 25), standardise=True, nested=True, weights=folder / "voxelwise_weights.npy"
)
encoder.fit(X_train, train, groups=runs)
predicted, observed = encoder.predict(X_test), test.read()

r = np.array([np.corrcoef(predicted[:, v], observed[:, v])[0, 1] for v in range(brain.n_units)])
ceiling = align.ncsnr_ceiling(brain.units["ncsnr"], n_repeats=3, metric="r")
print(f"\n{'region':8}{'cv r':>8}{'nested r':>10}{'test r':>8}{'ceiling':>9}{'median alpha':>14}")
regions = brain.units.groupby("region", sort=False).groups
for region, v in regions.items():
    print(
        f"{region:8}{encoder.cv_score_[v].mean():8.3f}{encoder.nested_score_[v].mean():10.3f}{r[v].mean():8.3f}"
        f"{ceiling[v].mean():9.3f}{np.median(encoder.alpha_[v]):14.0f}"
    )
print(
    f"\nweights of {encoder.weights_.shape[1]} voxels along {encoder.weights_.shape[0]} axes in voxelwise_weights.npy"
)

# Which of three feature spaces predicts each voxel best, chosen on training folds and scored on the fold held out.
layers = {
    name: encoders.extract(name, brain.stimuli, layer, reduce=6)[layer]
    for name, layer in (("gabor", "energy"), ("texture", "statistics"), ("annotations", "annotations"))
}
spaces = encoders.Features("spaces", gabor.stimulus_ids, layers)
best = align.best_layer(spaces, brain, encoders.RidgeCV(score="r2", standardise=True), metric="r")
share = best.groupby("region", sort=False)["layer"].value_counts(normalize=True).unstack(fill_value=0)[list(layers)]
print(f"\nshare of voxels by their best feature space\n{share.round(2).rename_axis(index=None, columns=None)}")

plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
jitter = np.random.default_rng(0).uniform(-0.32, 0.32, brain.n_units)
row = brain.units["region"].map({region: row for row, region in enumerate(regions)}) + jitter
dots = left.scatter(encoder.alpha_, row, c=encoder.nested_score_, s=12, cmap="viridis", vmin=0, vmax=0.9, lw=0)
left.set(xscale="log", xlabel="alpha", yticks=range(len(regions)), yticklabels=list(regions), ylim=(3.5, -0.5))
left.set_title("The alpha of every voxel")
figure.colorbar(dots, ax=left, label="nested r, Gabor energy")
colours = dict(zip(regions, ("#0072b2", "#e69f00", "#009e73", "#cc79a7"), strict=True))
for region, v in regions.items():
    middle.plot(ceiling[v], r[v], "o", ms=3.5, mew=0, alpha=0.7, color=colours[region], label=region)
middle.plot([0.7, 1], [0.7, 1], color="0.5", lw=1, ls="--", zorder=0)
middle.set(xlim=(0.7, 0.96), ylim=(-0.3, 1), xlabel="noise ceiling (r)", ylabel="r on test stimuli, Gabor energy")
middle.set_title("Every voxel against its ceiling")
middle.legend(loc="lower center", ncols=4, handletextpad=0, columnspacing=0.8)
for layer, colour in zip(layers, ("#56b4e9", "#d55e00", "0.45"), strict=True):
    won = (best["layer"] == layer).to_numpy()
    right.plot(encoder.nested_score_[won], best["score"][won], "o", ms=3.5, mew=0, alpha=0.7, color=colour, label=layer)
right.plot([-0.3, 1], [-0.3, 1], color="0.5", lw=1, ls="--", zorder=0)
right.set(xlim=(-0.3, 1), ylim=(-0.3, 1), xlabel="nested r, Gabor energy", ylabel="r of the voxel's best space")
right.set_title("What choosing the feature space adds")
right.legend(loc="lower right", handletextpad=0, title="chosen", alignment="left")
figure.get_layout_engine().set(wspace=0.06)
figure.savefig(folder / "voxelwise_encoding.png", dpi=150)
print(f"\nFigure: {folder / 'voxelwise_encoding.png'}")
