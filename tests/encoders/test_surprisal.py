"""Bits per word from the head of a causal model."""

from functools import cache

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from neuralign.datasets import StimulusSet
from neuralign.encoders.features.digest import digest_of
from neuralign.encoders.features.hooks import collect, trace
from neuralign.encoders.features.text.inputs import WordInputs
from neuralign.encoders.features.text.surprisal import has_causal_head, is_causal, surprisal, with_surprisal

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
SMALL = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1}
TEXT = "fee fi fo fum i smell the blood of an englishman be he alive or be he dead"
WORDS = TEXT.split()

CAUSAL = {
    "gpt2, tied head": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=64)
    ),
    "llama, head of its own": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)),
    "gemma 2, capped logits": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5)
    ),
    "cohere, scaled logits": lambda: transformers.CohereForCausalLM(
        transformers.CohereConfig(**SMALL, logit_scale=0.25, eos_token_id=1)
    ),
    "granite, divided logits": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SMALL, logits_scaling=3.0)
    ),
    "mamba, no positions": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=40)
    ),
}


@cache
def letters(special="$A"):
    tokens = ["<s>", "?", *"Ġabcdefghijklmnopqrstuvwxyz"]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[], unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.post_processor = processors.TemplateProcessing(single=special, special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


def built(kind, spread=0.3):
    torch.manual_seed(0)
    lm = CAUSAL[kind]().eval()
    for parameter in lm.parameters():  # far from a uniform prediction
        parameter.data += spread * torch.randn_like(parameter)
    return lm


def bits_by_hand(lm, ids):
    """Of every token but the first, in float64, from all the logits that the model gives."""
    with torch.no_grad():
        logits = lm(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return np.array([-logs[t - 1, ids[t]] / np.log(2) for t in range(1, len(ids))])


def read(module, inputs, words, size=2):
    stimuli = StimulusSet.from_words(words, np.arange(len(words)))
    found = np.full(len(words), 99.0)
    for rows, batch in inputs.batches(stimuli, size):
        index = batch.pop("index")
        taken = collect(module, batch, ["surprisal"], lambda x, i=index: inputs.gather("surprisal", x, i))
        found[rows] = taken["surprisal"][:, 0]
    return found


@pytest.mark.parametrize("kind", CAUSAL)
def test_surprisal_equals_the_logits_of_the_whole_model(kind):
    lm = built(kind)
    ids = torch.randint(0, 40, (3, 20), generator=torch.Generator().manual_seed(0))
    module = with_surprisal(lm)
    found = collect(module, {"input_ids": ids}, ["surprisal"], lambda x: x)["surprisal"].numpy()
    assert np.isnan(found[:, 0]).all()
    for row in range(3):
        np.testing.assert_allclose(found[row, 1:], bits_by_hand(lm, ids[row].tolist()), rtol=2e-5, atol=1e-5)
    assert found[:, 1:].std() > 0.2  # not the bits of a uniform guess
    assert is_causal(module) and has_causal_head(lm.config)


def test_chunks_do_not_change_bits():
    hidden, head = torch.randn(2, 9, 5), nn.Linear(5, 11)
    ids = torch.randint(0, 11, (2, 9))
    whole = surprisal(hidden, head, ids, chunk=1000)
    for chunk in (1, 3, 16):
        torch.testing.assert_close(surprisal(hidden, head, ids, chunk), whole, equal_nan=True)
    assert whole.shape == (2, 9) and whole.dtype == torch.float32
    assert surprisal(hidden[0, :1], head, ids[0, :1]).isnan().all()


def test_no_more_logits_are_held_than_asked_for():
    sizes = []

    def head(x):
        sizes.append(len(x))
        return torch.zeros(len(x), 4)

    bits = surprisal(torch.zeros(1, 300, 2), head, torch.zeros(1, 300, dtype=torch.long))
    assert max(sizes) == 128 and sum(sizes) == 299
    torch.testing.assert_close(bits[0, 1:], torch.full((299,), 2.0))  # one of four: two bits


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_bits_of_a_word_are_the_sum_of_its_tokens(pool):
    lm = built("gpt2, tied head")
    text = letters()(" ".join(WORDS))["input_ids"]
    assert len(text) > 64  # more than the model reads at once
    inputs = WordInputs(letters(), 64, pool=pool)
    found = read(with_surprisal(lm), inputs, WORDS)
    place, expected = 0, []
    for word in WORDS:
        first, last = place, place + len(word) - 1
        start = 0 if last < 64 else 32
        expected.append(bits_by_hand(lm, text[start : last + 1])[-len(word) :].sum() if first else np.nan)
        place = last + 2
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isnan(found[0]) and np.isfinite(found[1:]).all()


def test_bits_of_a_text_add_up_to_its_probability():
    """The chain rule, where every token belongs to a word."""
    lm, words = built("llama, head of its own"), ["fee", "fi", "fo"]
    inputs = WordInputs(letters("<s> $A"), 64)
    stimuli = StimulusSet.from_words(words, [0, 1, 2])
    joined = StimulusSet(stimuli.ids, stimuli.source, "word", stimuli.table.assign(joiner=""))
    [(_, batch)] = inputs.batches(joined, 1)
    index = batch.pop("index")
    module = with_surprisal(lm)
    bits = collect(module, batch, ["surprisal"], lambda x: inputs.gather("surprisal", x, index))["surprisal"]
    ids = batch["input_ids"]
    with torch.no_grad():
        nats = lm(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert ids[0, 0] == 0 and bits.isfinite().all()  # <s> stands before the first word
    np.testing.assert_allclose(bits.sum().item(), nats / np.log(2), rtol=1e-5)


def test_model_below_the_head_keeps_its_layers():
    lm = built("gpt2, tied head")
    plain = transformers.GPT2Model(lm.config)
    plain.load_state_dict(lm.transformer.state_dict())
    plain.eval()
    batch = {"input_ids": torch.arange(20).view(2, 10)}
    before = [call.layer for call in trace(plain, batch)]
    module = with_surprisal(lm)
    assert [call.layer for call in trace(module, batch) if call.layer != "surprisal"] == before
    with torch.no_grad():
        torch.testing.assert_close(module(**batch)[0], plain(**batch)[0])
        assert "past_key_values" not in module(**batch)
    assert digest_of(module) != digest_of(plain)
    with torch.no_grad():
        before_change = digest_of(module)
        lm.lm_head.weight[3, 3] += 1
    assert digest_of(module) != before_change


def test_head_runs_only_when_somebody_listens():
    module = with_surprisal(built("gpt2, tied head"))
    calls = []
    forward = module.surprisal.head.forward
    module.surprisal.head.forward = lambda x: calls.append(len(x)) or forward(x)
    batch = {"input_ids": torch.arange(20).view(2, 10)}
    collect(module, batch, ["h.1", "output"], lambda x: x)
    assert calls == []
    collect(module, batch, ["surprisal"], lambda x: x)
    assert calls == [18]


def test_head_that_does_not_follow_the_last_state_is_left_out():
    class Odd(transformers.GPT2LMHeadModel):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.logits = out.logits.flip(-1)
            return out

    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40)
    with pytest.warns(UserWarning, match="Odd has no layer 'surprisal'"):
        module = with_surprisal(Odd(config))
    assert "surprisal" not in dict(module.named_modules())
    assert [call.layer for call in trace(module, {"input_ids": torch.arange(6).view(2, 3)})][-1] == "output"


def test_what_reads_from_left_to_right_is_found_by_trial():
    wide = {**SIZES, "intermediate_size": 32}
    bert = transformers.BertModel(transformers.BertConfig(**wide))
    xlnet = transformers.XLNetModel(
        transformers.XLNetConfig(d_model=16, n_layer=1, n_head=2, d_inner=32, vocab_size=40)
    )
    decoder = transformers.BertModel(transformers.BertConfig(**wide, is_decoder=True))
    bert.train()
    assert not is_causal(bert) and bert.training
    assert not is_causal(xlnet) and is_causal(decoder)
    assert not has_causal_head(bert.config)
