"""Score a trained ResNet-20 against macaque V4 neurons (Cowley et al. 2023), beside pixels and an untrained copy.

    NEURALIGN_DATA=/path/to/data python examples/reproduce_v4_benchmark.py [SESSION ...]

Needs the folders cowley_v4 (GitHub cowleygroup/V4_compact_models, data_V4_responses) and weights_cifar_resnet
(GitHub akamaster/pytorch_resnet_cifar10, pretrained_models) below NEURALIGN_DATA. Half a minute a session on two
cores.
"""

import os
import sys
from pathlib import Path

from neuralign import align, datasets, encoders

root = Path(os.environ.get("NEURALIGN_DATA", ""))
if not ((root / "cowley_v4").is_dir() and (root / "weights_cifar_resnet").is_dir()):
    print("skipped: NEURALIGN_DATA names no folder with cowley_v4 and weights_cifar_resnet")
    sys.exit()

models = ["pixels", "resnet20-cifar-untrained", "resnet20-cifar"]
for session in sys.argv[1:] or ["210325"]:
    brain = datasets.load("cowley-v4", session=session)
    features = [encoders.extract(model, brain.stimuli, reduce=6) for model in models]  # maps averaged into 6 x 6
    table = align.score(features, brain)
    rows = table[table["metric"] == "r"]
    print(f"\n{brain}\nmean over neurons of the cross-validated r; ceiling {rows['ceiling'].iloc[0]:.2f}\n")
    print(rows[["model", "layer", "score", "ci_low", "ci_high", "normalised", "p"]].round(3).to_string(index=False))
