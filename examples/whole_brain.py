"""A whole brain at the shape of the Natural Scenes Dataset, streamed from disk, on generated data.

    python examples/whole_brain.py [--units 15000] [--stimuli 2000] [--features 512] [--workers 2]

Fifteen seconds on two cores and 0.3 GB of disk at this size, the default; NSD itself has 10,000 stimuli a subject and
about 200,000 voxels. Responses are written and read in blocks of voxels and never in memory as a whole; the weights go
to a file. What depends on the stimuli alone is computed once, for two subjects who saw the same ones.
"""

import argparse
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch
from scipy.stats import t as student

from neuralign import align, encoders

BLOCK = 2000  # voxels that are generated at a time
N_TEST = 200
N_SESSIONS = 20


def generate(path, X, n_units, seed):
    """Responses of one subject, block by block: half of the voxels follow the features, all have noise.

    Returns
    -------
    ndarray of bool, shape (unit,)
        The voxels that do.
    """
    rng = np.random.default_rng(seed)
    follows = rng.random(n_units) < 0.5
    with h5py.File(path, "w") as file:
        sides = {"train": slice(0, -N_TEST), "test": slice(-N_TEST, None)}
        for name, rows in sides.items():
            shape = len(X[rows]), n_units
            file.create_dataset(name, shape, np.float32, chunks=(shape[0], min(500, n_units)))
        for start in range(0, n_units, BLOCK):
            units = slice(start, min(start + BLOCK, n_units))
            weights = rng.standard_normal((X.shape[1], units.stop - start), np.float32) * follows[units]
            noise = rng.standard_normal((len(X), units.stop - start), np.float32)
            responses = 0.5 * X @ weights / np.sqrt(X.var(0).sum()) + noise
            for name, rows in sides.items():
                file[name][:, units] = responses[rows]
    return follows


def correlations(encoder, X, responses):
    """Correlation of predicted and measured responses, voxels in blocks."""
    predicted = encoder.predict(X)
    r = np.empty(predicted.shape[1])
    for start in range(0, len(r), BLOCK):
        units = slice(start, start + BLOCK)
        p = predicted[:, units] - predicted[:, units].mean(0)
        y = responses[:, units]
        y -= y.mean(0)
        with np.errstate(invalid="ignore"):
            r[units] = (p * y).sum(0) / np.sqrt((p * p).sum(0) * (y * y).sum(0))
    return r


def peak_memory():
    """Gigabytes, of this process since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=15_000, help="voxels of each subject")
    parser.add_argument("--stimuli", type=int, default=2_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--workers", type=int, default=0, help="processes of one thread each; default this one alone")
    parser.add_argument("--folder", type=Path, help="where the data go and stay; default a temporary folder")
    options = parser.parse_args()
    pool = nullcontext()
    if options.workers:  # that start afresh: forked ones would inherit threads of torch that do not run
        pool = ProcessPoolExecutor(options.workers, get_context("spawn"), torch.set_num_threads, (1,))
    with TemporaryDirectory() as temporary, pool as executor:
        run(options, options.folder or Path(temporary), executor)


def run(options, folder, executor):
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, options.features + 1) ** -0.5  # as of the layers of networks
    X = rng.standard_normal((options.stimuli, options.features), np.float32) * spectrum.astype(np.float32)
    started = time.perf_counter()
    follows = [generate(folder / f"subject{s}.h5", X, options.units, seed=s) for s in (1, 2)]
    size = sum((folder / f"subject{s}.h5").stat().st_size for s in (1, 2)) / 2**30
    print(f"two subjects of {options.stimuli} stimuli x {options.units} voxels: {size:.2f} GB on disk, ", end="")
    print(f"generated in {time.perf_counter() - started:.1f} s, peak memory {peak_memory():.2f} GB\n")

    n_train = options.stimuli - N_TEST  # the last stimuli are the test
    sessions = np.arange(n_train) * N_SESSIONS // n_train
    design = encoders.RidgeCV().design(X[:n_train], groups=sessions)
    for s in (1, 2):
        with h5py.File(folder / f"subject{s}.h5") as file:
            started = time.perf_counter()
            encoder = encoders.RidgeCV(weights=folder / f"weights{s}.npy")
            encoder.fit(design, file["train"], executor=executor)
            seconds = time.perf_counter() - started
            r = correlations(encoder, X[n_train:], file["test"])
        # Test stimuli are independent of each other and of the fit, so r has its textbook distribution where a voxel
        # has nothing to do with the features.
        with np.errstate(divide="ignore"):
            p = student.sf(r * np.sqrt((N_TEST - 2) / (1 - r**2)), N_TEST - 2)
        found = align.fdr(p) <= 0.05
        truth = follows[s - 1]
        shared = "" if s == 1 else ", stimuli shared with subject 1"
        print(f"subject {s}: {seconds:.1f} s, {options.units / seconds:,.0f} voxels a second{shared}")
        print(f"  21 alphas x 5 folds of whole sessions; weights in weights{s}.npy, ", end="")
        print(f"{(folder / f'weights{s}.npy').stat().st_size / 2**20:.0f} MB; peak memory {peak_memory():.2f} GB")
        print(f"  test r: {r[truth].mean():.3f} where voxels follow the features, {r[~truth].mean():.3f} elsewhere")
        print(f"  FDR 5 %: {found.sum()} voxels, {truth[found].mean():.1%} of them rightly; ", end="")
        print(f"{found[truth].mean():.1%} of those that follow the features are found\n")


if __name__ == "__main__":
    main()
