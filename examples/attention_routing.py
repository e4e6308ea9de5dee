"""Which places of a scene each region reads: attention routing beside static readouts, and its maps.

    NEURALIGN_DATA=/path/to/data python examples/attention_routing.py [FOLDER]

Forty seconds of one core; writes attention_routing.png and attention_routing.html. Tokens are those of a trained
ResNet-20 where NEURALIGN_DATA has the folder weights_cifar_resnet (GitHub akamaster/pytorch_resnet_cifar10,
pretrained_models), else of one that has not been trained. The faces and houses that the simulated FFA and PPA answer
to stand anywhere in the scene, so that a readout must find them first; V1 reads fixed places, and needs none of this.
"""

import os
import sys
from pathlib import Path

import pandas as pd

from neuralign import align, datasets, encoders

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
trained = (Path(os.environ.get("NEURALIGN_DATA", "")) / "weights_cifar_resnet").is_dir()
model = "resnet20-cifar" if trained else "resnet20-cifar-untrained"

brain = datasets.simulate.visual_cortex(n_stimuli=1200, n_units=200, seed=0)
train, test = (side.average_repeats() for side in brain.train_test(test=0.2, seed=0))
features = encoders.extract(model, brain.stimuli, "layer2", reduce=8)  # 8 x 8 places
tokens, grid = features["layer2"], features.grids["layer2"]
X, X_test = (tokens[features.rows(side.presentations["stimulus"].tolist())] for side in (train, test))
print(f"{brain}\n{X.shape[0]} scenes to fit, {len(X_test)} to test; {model} layer2, {grid[0]} x {grid[1]} places\n")

# Every readout chooses its penalty, field or learning rate on training scenes; none has seen the test scenes.
readouts = {
    "flat ridge": encoders.RidgeReadout("flat", grid=grid),
    "pooled ridge": encoders.RidgeReadout("pooled", grid=grid),
    "pooling grid": encoders.PoolingGridReadout(sizes=(0.125, 0.25, 0.5), grid=grid),
    "attention": encoders.AttentionRouter(query="region", grid=grid),
}
scores = {}
for name, readout in readouts.items():
    readout.fit(X, train.read(), units=brain.units)
    scores[name] = readout.unit_scores(X_test, test.read())
scores["ceiling"] = align.ncsnr_ceiling(brain.units["ncsnr"], n_repeats=3, metric="r")
table = pd.DataFrame(scores).groupby(brain.units["region"], sort=False).mean()
print(f"mean r of the voxels on test scenes\n{table.round(3).rename_axis(None).to_string()}\n")

# Where the attention of each region lies in scenes that the fit has not seen, and on what.
router = readouts["attention"]
maps = router.routing(X_test, stimulus_ids=test.presentations["stimulus"]).with_stimuli(brain.stimuli)
found = maps.on_objects().pivot(index="query", columns="category", values=["hits", "hits_by_chance"])
found = found.loc[list(maps.queries)].rename_axis(None)
print("share of the scenes with an object of the category where a region's map peaks on it")
print(found["hits"].round(2).rename_axis(columns=None).to_string())
print("\nthe same for the maps of other scenes")
print(found["hits_by_chance"].round(2).rename_axis(columns=None).to_string())
print("\nshare of the maps that changes with the scene:", maps.variation().round(2).to_dict())
print("correlation of the maps of FFA and PPA:", round(float(maps.similarity().loc["FFA", "PPA"]), 2))

both = brain.stimuli.objects.groupby("stimulus")["category"].agg(lambda names: {"face", "house"} <= set(names))
shown = [one for one in maps.stimulus_ids if both[one]][:6]  # with a face and a house
maps.plot(stimuli=shown).savefig(folder / "attention_routing.png", dpi=150)
print(f"\nFigure: {folder / 'attention_routing.png'}")
print(f"Report: {align.report(maps, folder / 'attention_routing.html')}")
