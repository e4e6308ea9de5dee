"""Fit a voxelwise encoder by hand: split, features, ridge with an alpha per voxel, test, ceiling.

    python examples/fit_voxelwise_encoder.py

Twenty seconds on two cores. Replace the first lines by your own arrays:

    brain = datasets.from_arrays(responses, images, regions=regions, stimulus_ids=stimulus_ids)
"""

import numpy as np

from neuralign import align, datasets, encoders

brain = datasets.simulate.visual_cortex(n_stimuli=400, n_units=400, seed=1)
print(brain)

# Test stimuli are never seen in training, however often they were repeated.
train, test = brain.train_test(test=0.25, seed=0)
train, test = train.average_repeats(), test.average_repeats()
features = encoders.extract("gabor", brain.stimuli)["energy"]
features = features.reshape(len(features), -1)  # (stimulus, place, channel) to (stimulus, feature)
X_train = features[brain.stimuli.index(train.presentations["stimulus"])]
X_test = features[brain.stimuli.index(test.presentations["stimulus"])]

encoder = encoders.RidgeCV(alphas=np.logspace(0, 6, 20), standardise=True).fit(X_train, train.read())
predicted = encoder.predict(X_test)
observed = test.read()

r = np.array([np.corrcoef(predicted[:, v], observed[:, v])[0, 1] for v in range(brain.n_units)])
ceiling = align.ncsnr_ceiling(brain.units["ncsnr"], n_repeats=3, metric="r")
print(f"\n{'region':8}{'test r':>8}{'ceiling':>9}{'median alpha':>14}")
for region, members in brain.units.groupby("region", sort=False).groups.items():
    print(f"{region:8}{r[members].mean():8.3f}{ceiling[members].mean():9.3f}{np.median(encoder.alpha_[members]):14.0f}")

# The same in one call, cross-validated over all stimuli, with interval, p value and a report.
table = align.score(encoders.extract("gabor", brain.stimuli), brain)
print()
columns = ["region", "score", "ci_low", "ci_high", "ceiling", "normalised", "p"]
print(table.loc[table["metric"] == "r", columns].round(3).to_string(index=False))
