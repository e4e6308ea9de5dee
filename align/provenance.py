"""How a result was made: enough to make it again."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("neuralign", "torch", "numpy", "scipy", "scikit-learn", "pandas", "transformers")


def provenance(**options: Any) -> dict[str, Any]:
    """Versions, time, machine and command line, with the options of the call."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["neuralign", *sys.argv[1:]]) if sys.argv[0].endswith("neuralign") else "Python",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "options": options,
    }
