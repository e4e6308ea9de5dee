"""Checkpoints and repositories that want to run code: nothing of them runs, and what is plain is read."""

import io
import json
import os
import pickle
import shutil
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from neuralign.encoders import load_model
from neuralign.encoders.features.adapters.checkpoints import load_into, load_state, only_tensors
from neuralign.encoders.features.pretrained import refuse_kernels

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture
def marker(tmp_path):
    """A file that only hostile code would write."""
    path = tmp_path / "the code has run"
    yield path
    assert not path.exists()


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


def weights():
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


def old_format(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


# ------------------------------------------------------------------------------------------------ plain tensors


@pytest.mark.parametrize("write", [torch.save, old_format, safetensors.save_file])
def test_every_format_of_plain_tensors(tmp_path, write):
    path = tmp_path / ("w.safetensors" if write is safetensors.save_file else "w.pt")
    write(weights(), path)
    found = load_state(path)
    assert list(found) == list(weights()) or sorted(found) == sorted(weights())
    for name, tensor in weights().items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_what_training_scripts_put_around_the_weights(tmp_path, key, prefix):
    state = {prefix + name: tensor for name, tensor in weights().items()}
    torch.save({key: state, "epoch": 3, "optimiser": {"lr": 0.1, "moments": [torch.ones(2)]}}, tmp_path / "w.pt")
    assert sorted(load_state(tmp_path / "w.pt")) == sorted(weights())


def test_a_prefix_of_some_names_belongs_to_them(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert sorted(load_state(tmp_path / "w.pt")) == ["b", "module.a"]


def test_weights_go_into_a_module_whole_or_not_at_all(tmp_path):
    module = nn.Linear(3, 2)
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.ones(2)}, tmp_path / "w.pt")
    load_into(module, load_state(tmp_path / "w.pt"), tmp_path / "w.pt", "mine")
    assert torch.equal(module(torch.ones(1, 3)), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"(?s)w\.pt do not fit mine: .*Missing key.*bias"):
        load_into(module, {"weight": torch.zeros(2, 3)}, tmp_path / "w.pt", "mine")
    with pytest.raises(ValueError, match=r"(?s)do not fit mine: .*size mismatch"):
        load_into(module, {"weight": torch.zeros(3, 3), "bias": torch.ones(2)}, tmp_path / "w.pt", "mine")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(2), "a Tensor"),
        ([torch.ones(2)], "a list"),
        ({}, "an empty dict"),
        ({"epoch": 3, "net": {"a": torch.ones(1)}}, "a dict with 'epoch', 'net'"),
        ({"state_dict": {"a": torch.ones(1), "b": 3}}, "a dict with 'state_dict'"),
        ({3: torch.ones(1)}, "a dict with 3"),
    ],
)
def test_tensors_without_names_are_described(tmp_path, value, said):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"not a checkpoint of plain tensors by name .*it holds {said}\. Save module"):
        load_state(tmp_path / "w.pt")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_state(tmp_path / "absent.pt")


# ------------------------------------------------------------------------------------------------ hostile files


def plain_pickle(bad, path):
    path.write_bytes(pickle.dumps({"a.weight": bad}))


def archive_of_torch(bad, path):
    torch.save({"a.weight": torch.ones(2), "b": bad}, path)


def archive_of_old_torch(bad, path):
    old_format({"a.weight": torch.ones(2), "b": bad}, path)


def whole_module(bad, path):
    module = nn.Linear(2, 2)
    module.extra = bad
    torch.save(module, path)


def class_as_key(bad, path):
    torch.save({"state_dict": {"a.weight": torch.ones(2)}, bad: 1}, path)


def pickle_put_into_an_archive(bad, path):
    """A sound archive in which the pickle alone is exchanged."""
    torch.save({"a.weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, pickle.dumps(bad) if name.endswith("data.pkl") else data)


def scripted(bad, path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


HOSTILE = [
    plain_pickle,
    archive_of_torch,
    archive_of_old_torch,
    whole_module,
    class_as_key,
    pickle_put_into_an_archive,
    pytest.param(scripted, marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")),
]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("write", HOSTILE)
def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path, marker, write, suffix):
    path = tmp_path / f"w{suffix}"
    write(Hostile(marker), path)
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors") as raised:
        load_state(path)
    assert "weights_only" not in str(raised.value) and raised.value.__cause__ is None
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("write", HOSTILE[:6])
def test_the_hostile_files_are_hostile(tmp_path, write):
    """Unpickled the way that everybody is warned of they do run, or the tests above would show nothing."""
    path, ran = tmp_path / "w.pt", tmp_path / "ran"
    write(Hostile(ran), path)
    try:
        if write is plain_pickle:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
    except Exception:  # some break after the code has run
        pass
    assert ran.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_is_cut_off(tmp_path, name, kept):
    path = tmp_path / name
    state = {"a": torch.ones(1000)}
    safetensors.save_file(state, path) if name.endswith("rs") else torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match="is cut off"):
        load_state(path)


def test_safetensors_whose_header_lies(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        load_state(tmp_path / "w.safetensors")


def test_only_tensors_holds_whatever_the_caller_asks_for(tmp_path, marker, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    archive_of_torch(Hostile(marker), tmp_path / "w.pt")
    with only_tensors(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pt", weights_only=False)
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with pytest.raises(KeyError), only_tensors():
        raise KeyError
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    buffer = io.BytesIO()
    torch.save(weights(), buffer)
    buffer.seek(0)
    with only_tensors():
        assert sorted(torch.load(buffer)) == sorted(weights())


# ------------------------------------------------------------------------------------------------ repositories

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
import torch
class MyConfig(PretrainedConfig):
    model_type = "of-its-own"
class MyModel(PreTrainedModel):
    config_class = MyConfig
    main_input_name = "pixel_values"
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(3, 2)
        self.post_init()
    def forward(self, pixel_values):
        return self.layer(pixel_values.mean((2, 3)))
"""
PIXELS = {"size": {"height": 8, "width": 8}, "image_processor_type": "ViTImageProcessor"}


@pytest.fixture
def vit(tmp_path):
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder


def amended(path, **more):
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | more))


def own_code(folder, marker):
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    auto = {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}
    amended(folder / "config.json", model_type="of-its-own", auto_map=auto, architectures=["MyModel"])


def test_code_of_a_repository_runs_only_when_it_is_asked_for(vit, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    own_code(vit, ran)
    state = {"layer.weight": torch.ones(2, 3), "layer.bias": torch.zeros(2)}
    safetensors.save_file(state, vit / "model.safetensors", metadata={"format": "pt"})
    for name in (str(vit), f"transformers:{vit}", f"{vit}-untrained"):
        with pytest.raises(ValueError, match=r"brings code of its own .* pass trust_remote_code=True"):
            load_model(name)
        assert not ran.exists()
    with monkeypatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        patch.syspath_prepend(str(tmp_path / "modules"))
        model = load_model(str(vit), trust_remote_code=True)
    assert ran.exists()
    assert torch.equal(model.module(torch.ones(1, 3, 8, 8)), torch.full((1, 2), 3.0))


def test_code_beside_a_model_that_needs_none_stays_where_it_is(vit, marker):
    (vit / "mine.py").write_text(CODE.format(marker=str(marker)))
    amended(vit / "config.json", auto_map={"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"})
    (vit / "custom_generate").mkdir()
    shutil.copy(vit / "mine.py", vit / "custom_generate" / "generate.py")
    assert type(load_model(str(vit)).module).__module__.startswith("transformers.")


def test_code_of_an_image_processor(vit, marker):
    (vit / "mine.py").write_text(CODE.format(marker=str(marker)))
    settings = {"image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.MyModel"}}
    (vit / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"image processor brings code of its own .* trust_remote_code=True"):
        load_model(str(vit))


def test_code_of_a_tokenizer(tmp_path, marker):
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5, n_positions=8)
    transformers.GPT2Model(config).save_pretrained(folder)
    (folder / "mine.py").write_text(CODE.format(marker=str(marker)))
    auto = {"AutoTokenizer": ["mine.MyModel", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Mine", "auto_map": auto}))
    with pytest.raises(ValueError, match="its tokenizer cannot be loaded"):
        load_model(str(folder))
    settings = {"tokenizer_class": "GPT2Tokenizer", "auto_map": auto}  # there is a class of that name here
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="comes without its tokenizer; save it beside the weights"):
        load_model(str(folder))


def test_a_configuration_that_takes_attention_from_a_repository(vit):
    amended(vit / "config.json", attn_implementation="somebody/attention")
    with pytest.raises(ValueError, match=r"trust_remote_code=True.*from the repository 'somebody/attention'"):
        load_model(str(vit))
    inner = types.SimpleNamespace(_attn_implementation="somebody/attention")
    outer = types.SimpleNamespace(_attn_implementation="sdpa", vision_config=inner, text_config=None)
    with pytest.raises(ValueError, match="from the repository 'somebody/attention'"):
        refuse_kernels(outer, trust=False)
    refuse_kernels(outer, trust=True)
    inner._attn_implementation = "sdpa"
    refuse_kernels(outer, trust=False)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [archive_of_torch, archive_of_old_torch, pickle_put_into_an_archive, plain_pickle])
def test_a_hostile_checkpoint_in_a_folder_of_transformers(vit, marker, write):
    (vit / "model.safetensors").unlink()
    write(Hostile(marker), vit / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not one of plain tensors") as raised:
        load_model(str(vit))
    assert "weights_only" not in str(raised.value) and raised.value.__cause__ is None


def test_a_plain_checkpoint_of_torch_in_a_folder_of_transformers(vit):
    truth = load_model(str(vit)).module.state_dict()
    (vit / "model.safetensors").unlink()
    torch.save(truth, vit / "pytorch_model.bin")
    found = load_model(str(vit)).module.state_dict()
    assert sorted(found) == sorted(truth)
    assert all(torch.equal(found[name], tensor) for name, tensor in truth.items())


def test_of_two_checkpoints_the_safe_one_is_read(vit, marker):
    archive_of_torch(Hostile(marker), vit / "pytorch_model.bin")
    assert load_model(str(vit)).name == "vit"


def test_an_index_of_parts_that_points_elsewhere(vit, tmp_path, marker):
    """Part of a checkpoint may name a file anywhere; wherever it lies, it is read as tensors or not at all."""
    (vit / "model.safetensors").unlink()
    archive_of_torch(Hostile(marker), tmp_path / "elsewhere.bin")
    index = {"metadata": {}, "weight_map": {"layernorm.weight": "../elsewhere.bin"}}
    (vit / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not one of plain tensors|cannot be loaded"):
        load_model(str(vit))


def test_trust_is_not_read_elsewhere(tmp_path):
    for model in ("pixels", nn.ReLU(), "torch.nn:ReLU", load_model("pixels")):
        with pytest.raises(ValueError, match="trust_remote_code= is not read by"):
            load_model(model, trust_remote_code=True)


def test_nothing_of_the_library_unpickles():
    """Every torch.load says weights_only=True, and pickle is not read anywhere."""
    import neuralign.encoders

    root = Path(neuralign.encoders.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert text.count("torch.load(") == text.count("weights_only=True, mmap"), path
        assert "pickle.load" not in text and "allow_pickle=True" not in text, path
