"""Which features explain a region, and what they explain together: banded ridge and variance partitioning.

    python examples/variance_partitioning.py [FOLDER]

Ten seconds on two cores; writes variance_partitioning.png. Two questions that are easily mixed up:

- How does one fit of all feature spaces divide its score among them? Banded ridge, with a penalty for every space of
  every voxel, and the product measure (`encoders.split_r2`).
- What does a space explain that no other can? Fits of all subsets of the spaces (`align.variance_partition`).
"""

import sys
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuralign import align, datasets, encoders

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
brain = datasets.simulate.visual_cortex(n_stimuli=240, n_units=160, seed=2)
sources = {"gabor": "energy", "texture": "statistics", "annotations": "annotations"}
spaces = {name: encoders.extract(name, brain.stimuli, layer, reduce=4) for name, layer in sources.items()}
print(brain)


def banded(sizes):
    """Banded ridge for spaces of so many columns, on scales that training rows set.

    Shares of the penalty are drawn at random unless they are given. Here every subset of the spaces is tried, so that a
    voxel may do without a space.
    """
    subsets = [subset for subset in product((0, 1), repeat=len(sizes)) if any(subset)]
    return make_pipeline(StandardScaler(), encoders.BandedRidgeCV(spaces=sizes, score="r2", n_iter=subsets))


# One fit of all spaces; test stimuli are in no training row.
train, test = brain.train_test(test=0.25, seed=0)
train, test = train.average_repeats(), test.average_repeats()
flat = {name: spaces[name][layer].reshape(len(brain.stimuli), -1) for name, layer in sources.items()}
X = np.hstack(list(flat.values()))
X_train, X_test = (X[brain.stimuli.index(side.presentations["stimulus"])] for side in (train, test))
scaler, encoder = banded([one.shape[1] for one in flat.values()]).fit(X_train, train.read())
by_band = encoder.predict_by_band(scaler.transform(X_test))
split = encoders.split_r2(by_band, test.read(), encoder.response_mean_)
regions = brain.units["region"]
parts = pd.DataFrame(split.T, columns=list(sources)).groupby(regions, sort=False).mean()
parts["all"] = parts.sum(axis=1)
ceiling = align.ncsnr_ceiling(brain.units["ncsnr"], n_repeats=3, metric="r2")
parts["ceiling"] = pd.Series(ceiling).groupby(regions, sort=False).mean()
print(f"\nR2 of banded ridge on test stimuli, and the part of each space\n{parts.round(3).rename_axis(None)}")

# Fits of all seven subsets, on folds of the same stimuli.
table = align.variance_partition(spaces, brain, banded, cv=3, bootstrap=200)
exclusive = table[table["kind"].isin(["unique", "shared"])]
wide = exclusive.pivot_table("value", "component", "region", sort=False)
print(f"\nvariance explained by exactly these spaces\n{wide.round(3).rename_axis(index=None, columns=None)}")

plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
figure, (left, *panels) = plt.subplots(1, 5, figsize=(12, 3.8), layout="constrained", width_ratios=(2.2, 1, 1, 1, 1))
colours = dict(zip(sources, ("#56b4e9", "#d55e00", "0.45"), strict=True))
place = np.arange(len(parts))
top, under = np.zeros(len(parts)), np.zeros(len(parts))
for name, colour in colours.items():
    height = parts[name].to_numpy()
    left.bar(place, height, bottom=np.where(height > 0, top, under), color=colour, width=0.6, label=name)
    top, under = top + np.maximum(height, 0), under + np.minimum(height, 0)
left.hlines(parts["ceiling"], place - 0.4, place + 0.4, color="0.3", ls="--", lw=1.2, label="noise ceiling")
left.axhline(0, color="0.3", lw=0.7)
left.set(xticks=place, xticklabels=parts.index, ylim=(min(-0.05, under.min()), 1), ylabel="R2 on test stimuli")
left.set_title("One fit: what each space contributes")
left.legend(loc="upper left", ncols=2)
components = list(wide.index)
rows = np.arange(len(components))
for panel, region in zip(panels, wide.columns, strict=True):
    found = exclusive[exclusive["region"] == region].set_index("component").loc[components]
    panel.barh(rows, found["value"], color=[colours.get(component, "#cc79a7") for component in components], height=0.75)
    panel.hlines(rows, found["ci_low"], found["ci_high"], color="0.2", lw=1)
    panel.axvline(0, color="0.3", lw=0.7)
    panel.set(title=region, xlim=(-0.1, 0.75), ylim=(len(components) - 0.5, -0.5), yticks=rows, yticklabels=[])
panels[0].set_yticklabels([name if "&" in name else f"{name} alone" for name in components])
figure.supxlabel("R2 explained by exactly these spaces, with 95 % interval", x=0.72, fontsize=9)
figure.savefig(folder / "variance_partitioning.png", dpi=150)
print(f"\nFigure: {folder / 'variance_partitioning.png'}")
