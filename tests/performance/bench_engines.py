"""Ratios to peers in the same run (``make bench``); nothing here fails by a clock."""

import numpy as np
import torch

from neuralign import align, datasets, encoders


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


def bench_rdm(versus):
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm

    X = np.random.default_rng(0).standard_normal((1000, 5000))
    data = Dataset(X)
    versus(
        "correlation RDM, 1000 x 5000",
        lambda: align.rdm(X, "correlation"),
        lambda: calc_rdm(data, method="correlation"),
        "rsatoolbox",
    )


def bench_comparison(versus):
    from rsatoolbox.rdm import RDMs, compare

    vectors = np.random.default_rng(0).uniform(size=(300, 92 * 91 // 2))
    rdms = RDMs(vectors)
    versus(
        "rho-a of 300 with 300 RDMs of 92 stimuli",
        lambda: align.compare(vectors, vectors, "rho-a"),
        lambda: compare(rdms, rdms, "rho-a"),
        "rsatoolbox",
    )


def bench_bootstrap(versus):
    from rsatoolbox.inference import eval_bootstrap_pattern
    from rsatoolbox.model import ModelFixed
    from rsatoolbox.rdm import RDMs

    rng = np.random.default_rng(0)
    model, brain = rng.uniform(size=(3, 4186)), rng.uniform(size=(20, 4186))
    models = [ModelFixed(str(k), vector) for k, vector in enumerate(model)]
    rdms = RDMs(brain)
    versus(
        "bootstrap over 92 stimuli, 20 subjects, 3 models, 20 draws",
        lambda: align.inference.bootstrap_comparison(model, brain, "pearson", n=20),
        lambda: eval_bootstrap_pattern(models, rdms, method="corr", N=20),
        "rsatoolbox",
        rounds=2,
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
