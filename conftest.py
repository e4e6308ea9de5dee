"""The checkout root must not be importable: from there ``import datasets`` would find ours, not Hugging Face's."""

import sys
from pathlib import Path

_ROOT = Path(__file__).parent.resolve()
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _ROOT]
