"""One fit in a process of its own, so that the operating system can say what it took: ``python one_fit.py JSON``.

Prints JSON: seconds, peak memory above the data in GB, rate of a float32 product of matrices in GF/s, and where the
chosen alphas and their scores were written.
"""

import json
import re
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch


def peak() -> int:
    """Peak of resident memory in bytes since the last reset, by the kernel's account."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def resident() -> int:
    """Resident memory in bytes."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def data(n, p, v, folder=None):
    """Features with a power-law spectrum, and units that follow them with noise; responses on disk in `folder`."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, p), dtype=np.float32) * np.arange(1, p + 1, dtype=np.float32) ** -0.5
    if folder is None:
        Y = X @ rng.standard_normal((p, v), dtype=np.float32)
        Y += 3 * rng.standard_normal((n, v), dtype=np.float32)
        return X, Y
    import h5py

    path = Path(folder) / "responses.h5"
    with h5py.File(path, "w") as file:
        Y = file.create_dataset("Y", (n, v), "f4", chunks=(n, 256))
        for start in range(0, v, 2048):
            stop = min(start + 2048, v)
            block = X @ rng.standard_normal((p, stop - start), dtype=np.float32)
            Y[:, start:stop] = block + 3 * rng.standard_normal(block.shape, dtype=np.float32)
    return X, path


def product_rate() -> float:
    """Rate of a product of square float32 matrices, in flops per second."""
    A, B = torch.randn(2000, 2000), torch.randn(2000, 2048)
    out = torch.empty(2000, 2048)
    torch.matmul(A, B, out=out)
    start = time.perf_counter()
    for _ in range(5):
        torch.matmul(A, B, out=out)
    return 5 * 2 * 2000 * 2000 * 2048 / (time.perf_counter() - start)


def main(method, n, p, v, alphas, folds, out, folder=None, device="cpu"):
    warnings.simplefilter("ignore")
    grid = np.logspace(0, 6, alphas)
    X, Y = data(n, p, v, folder)
    rate = product_rate()
    if method == "neuralign":
        from neuralign import encoders

        encoders.RidgeCV([1.0, 10.0], cv=2, device=device).fit(X[:20, :5], np.random.standard_normal((20, 3)))  # noqa: NPY002
        weights = "memory" if folder is None else str(Path(folder) / "weights.npy")
        encoder = encoders.RidgeCV(grid, cv=folds, score="r2", device=device, weights=weights)

        def fit():
            if folder is None:
                return encoder.fit(X, Y)
            import h5py

            with h5py.File(Y) as file:
                return encoder.fit(X, file["Y"])

        def chosen(fitted):
            return fitted.alpha_, fitted.cv_score_
    else:
        name, backend = method.split("-")
        from himalaya.backend import set_backend
        from himalaya.kernel_ridge import KernelRidgeCV
        from himalaya.ridge import RidgeCV
        from himalaya.scoring import r2_score

        set_backend(backend)
        kind = {"RidgeCV": RidgeCV, "KernelRidgeCV": KernelRidgeCV}[name]
        solver = {"score_func": r2_score} | ({"n_targets_batch": 5000} if v > 5000 else {})
        encoder = kind(alphas=grid.astype(np.float32), cv=folds, fit_intercept=True, solver_params=solver)

        def fit():
            return encoder.fit(X, Y)

        def chosen(fitted):
            return np.asarray(fitted.best_alphas_), np.asarray(fitted.cv_scores_)

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident()
    start = time.perf_counter()
    fitted = fit()
    seconds = time.perf_counter() - start
    above = peak() - before
    np.savez(out, *chosen(fitted))
    print(json.dumps({"seconds": seconds, "gb": above / 1e9, "rate": rate}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
