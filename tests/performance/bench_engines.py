"""Ratios to peers in the same run (``make bench``); nothing here fails by a clock."""

import numpy as np
import torch

from neuralign import datasets, encoders


def bench_ridge(versus):
    from himalaya.ridge import RidgeCV as Peer

    rng = np.random.default_rng(0)
    n, p, v = 1000, 500, 2000
    X = (rng.standard_normal((n, p)) * np.arange(1, p + 1) ** -0.5).astype(np.float32)
    Y = (X @ rng.standard_normal((p, v)) + 3 * rng.standard_normal((n, v))).astype(np.float32)
    alphas = np.logspace(0, 6, 20)
    versus(
        f"RidgeCV, {n} x {p} x {v}, 20 alphas, 5 folds",
        lambda: encoders.RidgeCV(alphas, score="r2").fit(X, Y),
        lambda: Peer(alphas, cv=5).fit(X, Y),
        "himalaya",
    )


def bench_extraction(versus):
    stimuli = datasets.StimulusSet.from_images(np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), np.uint8))
    model = encoders.load_model("resnet20-cifar-untrained")
    x = torch.stack([model.inputs.read(stimuli.image(i)) for i in range(len(stimuli))])

    def bare():
        with torch.inference_mode():
            for start in range(0, len(x), 64):
                model.module(x[start : start + 64])

    versus(
        "ResNet-20 on 512 images, 5 layers pooled",
        lambda: encoders.extract(model, stimuli, reduce=6, cache=False),
        bare,
        "bare forward pass",
    )
