"""The key of a model: it changes with everything that a forward pass may read, and with nothing else."""

import dataclasses
import functools
import importlib
import os
import random
import subprocess
import sys
import textwrap
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders import ImageInputs, extract
from neuralign.encoders.features.digest import CannotTell, _Teller, digest_of

READ = ImageInputs((8, 8))


@dataclasses.dataclass
class Setting:
    gain: float
    table: dict = dataclasses.field(default_factory=dict)


class Slotted:
    __slots__ = ("gain",)

    def __init__(self, gain):
        self.gain = gain


class Holder(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        nn.init.ones_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.conv(x)


def closing_over(gain):
    return lambda x: x * gain


def by_default(gain):
    def scaled(x, gain=gain):
        return x * gain

    return scaled


def linear(value):
    part = nn.Linear(1, 1)
    nn.init.constant_(part.weight, value)
    nn.init.zeros_(part.bias)
    return part


def hooked(hook):
    module = Holder()
    module.conv.register_forward_hook(hook)
    return module


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (lambda v: Holder(_private=v), 1, 2),
        (lambda v: Holder(flag=v), True, 1),
        (lambda v: Holder(mask=torch.tensor([1.0, v])), 2.0, 3.0),
        (lambda v: Holder(mask=np.array([1.0, v])), 2.0, 3.0),
        (lambda v: Holder(mask=np.zeros(2, v)), np.int32, np.int64),
        (lambda v: Holder(names=np.array(["a", v], dtype=object)), "b", "c"),
        (lambda v: Holder(table={"a": {"b": [1, v]}}), 2, 3),
        (lambda v: Holder(kept={"a", "b", v}), "c", "d"),
        (lambda v: Holder(table={1: v}), "1", 1),
        (lambda v: Holder(setting=Setting(v)), 1.0, 2.0),
        (lambda v: Holder(setting=Setting(1.0, {"k": (v,)})), 1.0, 2.0),
        (lambda v: Holder(setting=Slotted(v)), 1.0, 2.0),
        (lambda v: Holder(act=v), torch.relu, torch.tanh),
        (lambda v: Holder(act=v), nn.functional.relu, nn.functional.gelu),
        (lambda v: Holder(act=closing_over(v)), 1.0, 2.0),
        (lambda v: Holder(act=by_default(v)), 1.0, 2.0),
        (lambda v: Holder(act=functools.partial(torch.clamp, min=v)), 0.0, 0.1),
        (lambda v: Holder(act=v), lambda x: x + 1, lambda x: x + 2),
        (lambda v: Holder(act=v), lambda x: x + 1, lambda x: x - 1),
        (lambda v: Holder(act=torch.no_grad()(v)), lambda x: x + 1, lambda x: x + 2),
        (lambda v: Holder(parts=[linear(v)]), 1.0, 2.0),
        (lambda v: hooked(closing_over(v)), 1.0, 2.0),
        (lambda v: Holder(rng=np.random.default_rng(v)), 1, 2),
        (lambda v: Holder(dtype=v), torch.float16, torch.float32),
        (lambda v: nn.Sequential(*v), (nn.ReLU(), nn.Tanh()), (nn.Tanh(), nn.ReLU())),
    ],
)
def test_every_attribute_counts(make, one, other):
    assert digest_of(make(one)) == digest_of(make(one))
    assert digest_of(make(one)) != digest_of(make(other))


def test_base_classes_count_and_so_do_class_attributes():
    def build(base_gain, gain):
        class Base(nn.Module):
            scale = gain

            def forward(self, x):
                return self.step(x) * 2 if base_gain else self.step(x)

        class Derived(Base):
            def step(self, x):
                return x

        return Derived()

    assert len({digest_of(build(0, 1)), digest_of(build(1, 1)), digest_of(build(0, 2))}) == 3
    same, other = (nn.Sequential(build(0, 1), build(0, v)) for v in (1, 2))  # two classes of one name
    assert digest_of(same) != digest_of(other)


def test_neither_the_mode_nor_the_memory_counts():
    module = Holder(act=closing_over(1.0), table={"a": Setting(1.0)})
    assert digest_of(module.train()) == digest_of(module.eval())
    again = Holder(act=closing_over(1.0), table={"a": Setting(1.0)})
    assert digest_of(module) == digest_of(again)


def test_what_contains_itself_is_told():
    def ring(gain):
        module = Holder()
        module.ring = {"gain": gain, "whole": [module]}
        return module

    assert digest_of(ring(1)) == digest_of(ring(1)) != digest_of(ring(2))


SOURCE = """
    import torch
    from torch import nn
    from helping import helped

    SCALE = 2
    def helper(x):
        return x * SCALE

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = {"one", "two", "three", "four"}
            self.act = lambda x: x + 1
        def forward(self, x):
            return helped(helper(self.act(x)))
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source=SOURCE, helping="def helped(x): return x"):
        (tmp_path / "netted.py").write_text(textwrap.dedent(source))
        (tmp_path / "helping.py").write_text(helping)
        for name in ("netted", "helping"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module("netted")

    yield write
    for name in ("netted", "helping"):
        sys.modules.pop(name, None)


def test_helpers_and_globals_count(written):
    base = digest_of(written().Net())
    assert digest_of(written().Net()) == base
    other = [
        digest_of(written(SOURCE.replace("x * SCALE", "x / SCALE")).Net()),
        digest_of(written(helping="def helped(x): return x + 1").Net()),
    ]
    changed = written()
    changed.SCALE = 3  # in memory only
    other.append(digest_of(changed.Net()))
    assert len({base, *other}) == 4


def test_a_class_without_source_counts_by_its_bytecode():
    def build(change):
        namespace = {"__name__": "typed_at_a_prompt"}
        exec(textwrap.dedent(SOURCE.replace("from helping import helped", "helped = abs").replace(*change)), namespace)
        return namespace["Net"]()

    base = digest_of(build(("", "")))
    assert base == digest_of(build(("", "")))
    for change in [("x * SCALE", "x / SCALE"), ("SCALE = 2", "SCALE = 3"), ("x + 1", "x + 2"), ("= abs", "= round")]:
        assert digest_of(build(change)) != base


def test_other_processes_find_the_same_key(written, tmp_path):
    written()
    program = "from neuralign.encoders.features.digest import digest_of; import netted; print(digest_of(netted.Net()))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in range(3)), sys.stdout])
def test_what_cannot_be_told_is_not_stored_and_named(value, tmp_path):
    module = Holder(odd={"here": value})
    with pytest.raises(CannotTell, match=r"net\.odd\['here'\]"):
        digest_of(module, "net")
    stimuli = StimulusSet.from_images(np.zeros((2, 8, 8, 3), np.uint8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = extract(module, stimuli, "conv", preprocess=READ, cache=tmp_path)
    assert len(caught) == 1 and "Holder are not stored: Holder.odd['here']" in str(caught[0].message)
    assert not list(tmp_path.iterdir()) and not features.keys_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(module, stimuli, "conv", preprocess=READ, cache=False)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_compiled_modules():
    with pytest.raises(CannotTell, match="net is a compiled module"):
        digest_of(torch.jit.script(nn.ReLU()), "net")
    one, same, other = (torch.compile(linear(v)) for v in (1.0, 1.0, 2.0))
    assert digest_of(one) == digest_of(same) != digest_of(other)


def test_a_module_that_counts_its_passes_has_the_key_of_before(tmp_path):
    class Counts(Holder):
        n_passes = 0

        def forward(self, x):
            self.n_passes += 1
            return super().forward(x)

    stimuli = StimulusSet.from_images(np.zeros((2, 8, 8, 3), np.uint8))
    first, second = (extract(Counts(), stimuli, "conv", preprocess=READ, cache=tmp_path) for _ in range(2))
    assert first.keys_ == second.keys_ and isinstance(second["conv"], np.memmap)


def test_an_object_that_preprocesses_is_told():
    class Crop:
        def __init__(self, gain):
            self.gain, self.rng = gain, random.Random(0)

    assert digest_of(Crop(1)) == digest_of(Crop(1)) != digest_of(Crop(2))


def test_tensors_hashed_side_by_side_are_those_hashed_one_by_one():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8).half())
    module.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
    module.register_buffer("empty", torch.zeros(0, 3))
    module.register_buffer("waves", torch.arange(3.0).to(torch.complex64).conj())
    walk = _Teller()
    walk.tell(module, "module")
    assert walk.contents == {} and walk.hash.hexdigest() == digest_of(module)
    before = digest_of(module)
    with torch.no_grad():
        module[2].weight[7, 7] += 0.5
    assert digest_of(module) != before
