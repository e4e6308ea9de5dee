"""Extraction beside the bare forward pass of the same model, batch and precision (``make bench``).

A ResNet-50 and a ViT-B/16 with random weights read images of 224 x 224 pixels from memory; eight blocks of each are
reduced and stored. The bare pass is handed batches that are normalised already, in the layout of memory that is faster
for it, and keeps nothing. Extraction is timed whole, with keys, trace and disk, and per further image, which is what
counts in a run over many. Peak memory is that of processes of their own, weights included, imports not.
"""

import functools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the script that child processes run lies beside this file
from one_extraction import INPUTS, batch_of, images, network

from neuralign.datasets import StimulusSet
from neuralign.encoders import Model, extract

ONE = Path(__file__).with_name("one_extraction.py")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 64 if DEVICE == "cuda" else 16
N = 32 * SIZE if DEVICE == "cuda" else 6 * SIZE
LAYOUTS = ("contiguous_format", "channels_last")
MODELS = ("resnet50", "vit-b16")
REDUCTIONS = ("sketch:8192", 7, "mean")


def device_name():
    if DEVICE == "cuda":
        return f"{torch.cuda.get_device_name()}, bfloat16"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {torch.get_num_threads()} threads, float32"


def seconds(function):
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forward(module, x, batches):
    """The bare pass over batches that are there."""
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
        for _ in range(batches):
            module(x)


@functools.cache
def faster_layout(name):
    """The layout of memory in which the bare pass is faster."""
    module = network(name)[0].to(DEVICE)
    pixels, took = images(SIZE), {layout: [] for layout in LAYOUTS}
    for layout in LAYOUTS * 4:
        laid_out = module.to(memory_format=getattr(torch, layout))
        x = batch_of(pixels, DEVICE, getattr(torch, layout))
        took[layout].append(seconds(lambda m=laid_out, x=x: forward(m, x, 1)))
    return min(LAYOUTS, key=lambda layout: min(took[layout][1:]))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", MODELS)
def bench_throughput(name, reduce, tmp_path, capsys):
    layout = getattr(torch, faster_layout(name))
    module, layers = network(name)
    plain = network(name)[0].to(DEVICE, memory_format=layout)
    x = batch_of(images(SIZE), DEVICE, layout)
    all_of_them = StimulusSet.from_images(images(N))
    some = all_of_them[: N // 3]

    def ours(stimuli, folder):
        return extract(Model(name, module, INPUTS), stimuli, layers, reduce, DEVICE, SIZE, tmp_path / folder)

    forward(plain, x, 1), ours(some[:SIZE], "first")  # first calls load code and touch memory
    whole, further = [], []
    for i in range(3):
        alone = seconds(lambda: forward(plain, x, N // SIZE)) / N
        few = seconds(lambda i=i: ours(some, f"few{i}"))
        many = seconds(lambda i=i: ours(all_of_them, f"many{i}"))
        whole.append((alone, many / N))
        further.append((alone, (many - few) / (N - len(some))))
    share, share_further = (statistics.median(a / b for a, b in pairs) for pairs in (whole, further))
    alone, took = (1e3 * statistics.median(column) for column in zip(*whole, strict=True))
    with capsys.disabled():
        print(f"\n{name:9} 8 blocks, reduce={reduce!s:12} batch {SIZE}, {device_name()}", end="")
        print(f"\n  bare {alone:.2f} ms an image, extract {took:.2f}: {share:.0%} of its throughput over {N} ", end="")
        print(f"images, {share_further:.0%} per further image", end="")


def measured(**request):
    command = [sys.executable, str(ONE), json.dumps(request)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return (found["bytes"] - found["images"]) / 1e6


@pytest.mark.parametrize("name", MODELS)
def bench_peak_memory(name, capsys):
    request = {"model": name, "size": SIZE, "device": DEVICE}
    alone = statistics.median(
        measured(**request, side="bare", n=4 * SIZE, layout=faster_layout(name)) for _ in range(3)
    )
    with capsys.disabled():
        print(f"\n{name:9} 8 blocks, batch {SIZE}: peak of the bare pass {alone:.0f} MB", end="")
    for reduce in REDUCTIONS:
        few, many = (
            statistics.median(measured(**request, side="neuralign", n=n, reduce=reduce) for _ in range(3))
            for n in (4 * SIZE, 16 * SIZE)
        )
        with capsys.disabled():
            print(
                f"; reduce={reduce} {few:.0f} MB ({few / alone:.2f}x) for {4 * SIZE} images, {many:.0f} MB "
                f"({many / alone:.2f}x) for {16 * SIZE}",
                end="",
            )
    with capsys.disabled():
        print(f"   ({device_name()})", end="")


def bench_second_run(tmp_path, capsys):
    module, layers = network("vit-b16")
    module.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}})
    )
    stimuli = StimulusSet.from_images(images(2 * SIZE))

    def by_name():
        return extract(str(tmp_path / "vit"), stimuli, layers, "sketch:8192", DEVICE, SIZE, tmp_path / "cache")

    def in_memory():
        return extract(Model("vit", module, INPUTS), stimuli, layers, 7, DEVICE, SIZE, tmp_path / "cache")

    for work, run in {"loaded by name": by_name, "a module in memory": in_memory}.items():
        first = seconds(run)
        again = [seconds(run) for _ in range(3)]
        with capsys.disabled():
            print(
                f"\nvit-b16, {work:18} first run over {len(stimuli)} images {first:6.2f} s, again "
                f"{statistics.median(again):.2f} s   ({device_name()})",
                end="",
            )
