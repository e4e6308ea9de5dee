"""Training steps of unit queries in a process of its own, for their memory: ``python one_routing.py JSON``.

Prints the peak of resident memory above what was there before the first step, in MB.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import torch


def sibling(path):
    """A module of the tests, by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernel_says(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    bench = sibling(Path(__file__).with_name("bench_routing.py"))
    torch.set_num_threads(1)
    shape = bench.Shape(batch=2, units=request["units"], queries=request["units"], **request["tokens"])
    ours, plain = bench.unit_modules(shape)
    module = plain if request["plain"] else ours
    del ours, plain
    step = bench.stepper(module, *bench.data(shape), torch.float32 if request["plain"] else torch.bfloat16)
    before = kernel_says("VmRSS")
    for _ in range(2):
        step()
    print(kernel_says("VmHWM") - before)
