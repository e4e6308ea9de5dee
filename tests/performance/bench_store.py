"""Reading stored features back, and a second run that finds everything stored (``make bench``)."""

import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, Model, extract
from neuralign.encoders.features.shards import Entry

ROWS, WIDTH = 10_000, 4096


def device() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def best(function, rounds=3):
    """Seconds of the fastest call, and of the first."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), seconds[0]


def bench_reading_a_layer_back(tmp_path, capsys):
    array = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32).astype(np.float16)
    entry = Entry(tmp_path, "ab" * 32)
    writing = time.perf_counter()
    form = entry.create(ROWS, (WIDTH,), "float16", 2048, {"layer": "bench"})
    for block in range(form.blocks):
        entry.commit(block, array[slice(*form.span(block))])
    writing = time.perf_counter() - writing
    there = np.zeros_like(array)  # touched: the first use of fresh memory costs more than reading

    def copy():
        np.copyto(there, Entry(tmp_path, "ab" * 32).read())

    fresh, first_fresh = best(lambda: np.array(Entry(tmp_path, "ab" * 32).read()))
    warm, _ = best(copy)
    opening, _ = best(lambda: Entry(tmp_path, "ab" * 32).read())
    rows = np.random.default_rng(1).permutation(ROWS)[:1000]
    some, _ = best(lambda: np.asarray(Entry(tmp_path, "ab" * 32).read())[rows])
    assert np.array_equal(there, array)
    size = array.nbytes / 1e9
    with capsys.disabled():
        print(
            f"\n{ROWS} x {WIDTH} float16 on {device()}: written {size / writing:.1f} GB/s with hashes and fdatasync;\n"
            f"  opened in {1e3 * opening:.2f} ms; read {size / warm:.1f} GB/s into touched memory, {size / fresh:.1f} "
            f"into new (first {size / first_fresh:.1f}); 1000 random rows in {1e3 * some:.1f} ms",
            end="",
        )
    assert size / warm >= 1


def bench_second_run(tmp_path, capsys):
    """A model with the weights of a ResNet-50, 10,000 images of which each is a file; imports are done."""
    from transformers import ResNetConfig, ResNetModel

    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 32, 32, 3), np.uint8)
    header = b"P6 32 32 255\n"
    for i, one in enumerate(pixels):
        (images / f"{i:05d}.ppm").write_bytes(header + one.tobytes())
    torch.manual_seed(0)
    module = ResNetModel(ResNetConfig()).eval()
    time.sleep(3)  # files that are as young as this are not remembered

    class Shrunk(nn.Module):
        """Everything that makes the key, nothing that costs time the first time."""

        def __init__(self):
            super().__init__()
            self.module = module
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.pool(x)

    def run():
        stimuli = StimulusSet.from_images([images / f"{i:05d}.ppm" for i in range(ROWS)])
        extract(Model("shrunk", Shrunk(), ImageInputs((32, 32))), stimuli, "pool", cache=tmp_path, batch_size=256)

    run()
    seconds, _ = best(run, 5)
    spent = time.process_time()
    run()
    spent = time.process_time() - spent
    with capsys.disabled():
        print(
            f"\nsecond run, 10,000 files and the weights of a ResNet-50, on {device()}: {seconds:.2f} s "
            f"({spent:.2f} s of CPU)",
            end="",
        )
    assert seconds < 1
