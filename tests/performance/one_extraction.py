"""One pass over images in a process of its own, so that the operating system can say what it took.

``python one_extraction.py JSON`` prints JSON: bytes at the peak above what the imports took, weights and images among
them, and the bytes of the images. `bench_features.py` starts it, and takes its models from here.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from one_fit import peak, resident

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, Model, extract

SIDE = 224
INPUTS = ImageInputs((SIDE, SIDE), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def network(name):
    """A model of full size with random weights, and eight of its blocks from the first to the last."""
    torch.manual_seed(0)
    if name == "resnet50":
        module = transformers.ResNetModel(transformers.ResNetConfig())
        paths = [f"encoder.stages.{s}.layers.{i}" for s, depth in enumerate((3, 4, 6, 3)) for i in range(depth)]
    else:
        module = transformers.ViTModel(transformers.ViTConfig())
        paths = [f"layers.{i}" for i in range(12)]
    chosen = np.linspace(0, len(paths) - 1, 8).round().astype(int)
    return module.eval(), [paths[i] for i in chosen]


def images(n):
    return np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)


def batch_of(pixels, device, layout):
    """Images as the network reads them."""
    return INPUTS.finish({"x": torch.from_numpy(pixels)}, torch.device(device), layout)["x"]


def bare(module, pixels, size, device, layout):
    """The forward pass and nothing else."""
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for start in range(0, len(pixels), size):
            module(batch_of(pixels[start : start + size], device, layout))


def main(model, side, n, size, device, reduce=None, layout="contiguous_format"):
    torch.zeros(1, device=device)
    before = resident()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    module, layers = network(model)
    pixels = images(n)
    if side == "bare":
        memory_format = getattr(torch, layout)
        bare(module.to(device, memory_format=memory_format), pixels, size, device, memory_format)
    else:
        stimuli = StimulusSet.from_images(pixels)
        with tempfile.TemporaryDirectory() as cache:
            extract(Model(model, module, INPUTS), stimuli, layers, reduce, device, size, cache)
    took = torch.cuda.max_memory_allocated() if device == "cuda" else peak() - before
    print(json.dumps({"bytes": took, "images": 0 if device == "cuda" else pixels.nbytes}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
