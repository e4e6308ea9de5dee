import os
from pathlib import Path

import pytest


def pytest_configure(config):
    # Features of tests must not land in, or be read from, the user's own cache.
    import tempfile

    os.environ["NEURALIGN_CACHE"] = tempfile.mkdtemp(prefix="neuralign-cache-")
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Root of the real recordings and weights; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("NEURALIGN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set NEURALIGN_DATA to its root")
    return root.resolve()


@pytest.fixture(scope="session")
def real_data(data_root):
    """The folder of one real dataset by name; the test is skipped where it is absent."""

    def folder(name: str) -> Path:
        if not (data_root / name).is_dir():
            pytest.skip(f"no {name} in {data_root}")
        return data_root / name

    return folder
