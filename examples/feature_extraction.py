"""Features of a network: what they would take, computed, stored, and found again.

    python examples/feature_extraction.py

An untrained ResNet-20 reads the photographs of the simulated subject. Each layer is kept as a sketch of 2048 numbers,
whose correlations are nearly those of the whole layer, here of up to 16,384 numbers: the last lines compare the two.
"""

import time

import numpy as np

from neuralign import align, datasets, encoders

stimuli = datasets.load("simulated", n_stimuli=300).stimuli
model, layers = "resnet20-cifar-untrained", ["conv1", "layer1", "layer2", "layer3"]

print(encoders.plan(model, stimuli, layers, reduce="sketch:2048"), "\n")
for run in ("first", "second"):
    start = time.perf_counter()
    features = encoders.extract(model, stimuli, layers, reduce="sketch:2048")
    print(f"{run} run: {time.perf_counter() - start:.2f} s")
print(features, "\n")

for layer in layers:
    sketched = align.rdm(features[layer], "correlation")
    whole = align.rdm(encoders.extract(model, stimuli, [layer])[layer].reshape(len(stimuli), -1), "correlation")
    agreement = align.compare(sketched, whole, "spearman")[0, 0]
    print(f"{layer:6}  RDM of the sketch against the RDM of the whole layer, Spearman {agreement:.3f}")

gram = encoders.gram(model, stimuli, layers, centre=True)  # exact inner products; no layer is ever in memory
print("\nLinear CKA between layers, from exact Gram matrices")
unit = np.stack([gram[layer].ravel() / np.linalg.norm(gram[layer]) for layer in layers])
for layer, row in zip(layers, unit @ unit.T, strict=True):
    print(f"{layer:6}  " + "  ".join(f"{cka:.3f}" for cka in row))
