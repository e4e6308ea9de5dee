"""Which tokens spell which words, for three kinds of tokenizers, trained here."""

import pickle
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from neuralign.datasets import StimulusSet
from neuralign.encoders.features.language import TextInputs
from neuralign.encoders.features.text.inputs import WordInputs
from neuralign.encoders.features.text.words import align_words, special_tokens, tokenizer_digest

CORPUS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do:",
    "once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it,",
    '"and what is the use of a book," thought Alice "without pictures or conversations?"',
    "So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy",
    "and stupid), whether the pleasure of making a daisy-chain would be worth the trouble of getting up",
] * 10
TEXT = 'Alice wasn\'t sitting on the "bank," naïve café 😀🎉 antidisestablishmentarianism a B-52 1,000 … of'
WORDS = TEXT.split()


@cache
def byte_level(trim=True, prefix=False, drop=None):
    """As GPT-2's."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Replace(drop, "") if drop else None
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw)


@cache
def metaspace():
    """As Llama's: the space belongs to the token after it, and <s> begins every text."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    raw.train_from_iterator([*CORPUS, " ".join(WORDS)], trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


@cache
def word_piece():
    """As BERT's: lower case, accents dropped, punctuation apart."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    around = [("[CLS]", 1), ("[SEP]", 2)]
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", model_max_length=12)


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level, untrimmed": lambda: byte_level(trim=False),
    "byte-level, prefix": lambda: byte_level(prefix=True),
    "metaspace": metaspace,
    "word pieces": word_piece,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def by_characters(words, joiners, offsets):
    """First and last token of each word, one character at a time."""
    spelt, place = [], 0
    for before, word in zip(joiners, words, strict=True):
        place += len(before)
        spelt.append(set(range(place, place + len(word))))
        place += len(word)
    tokens = [[t for t, (a, b) in enumerate(offsets) if spelt_by & set(range(a, b))] for spelt_by in spelt]
    return [t[0] for t in tokens], [t[-1] for t in tokens]


def test_alignment_equals_the_one_by_characters(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(10):
        words = list(rng.choice(WORDS, 30))
        aligned = align_words(words, tokenizer)
        first, last = by_characters(words, ["", *[" "] * 29], aligned.offsets)
        np.testing.assert_array_equal(aligned.first, first)
        np.testing.assert_array_equal(aligned.last, last)
        assert (aligned.first[1:] > aligned.last[:-1]).all()  # these tokenizers never cross a space
        assert aligned.last[-1] == len(aligned.token_ids) - 1


def test_tokens_of_a_word_spell_it(tokenizer):
    """Not by offsets: what the word alone is cut into, and what its tokens read as."""
    aligned = align_words(WORDS, tokenizer)
    for word, first, last in list(zip(WORDS, aligned.first, aligned.last, strict=True))[1:]:
        own = aligned.token_ids[first : last + 1].tolist()
        alone = align_words(["a", word], tokenizer).token_ids[1:].tolist()  # with the space before it
        assert own == alone[-len(own) :] and decoded(tokenizer, alone[: -len(own)]) == ""
        assert tokenizer.unk_token_id in own or decoded(tokenizer, own) == plain(tokenizer, word)


def decoded(tokenizer, ids):
    return re.sub(r"\s|##", "", tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def plain(tokenizer, word):
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer.normalize_str(word) if normalizer else word


def test_pieces_of_one_character_and_long_words_stay_together():
    aligned = align_words(["a", "😀🎉", "antidisestablishmentarianism", "a"], byte_level())
    assert aligned.last[1] - aligned.first[1] + 1 == 8 and aligned.last[2] > aligned.first[2] + 5
    assert (aligned.offsets[aligned.first[1] : aligned.last[1] + 1, 0] == [2, 2, 2, 2, 3, 3, 3, 3]).all()


def test_words_without_spaces_share_a_token():
    tokenizer = byte_level()
    aligned = align_words(["sist", "er", "sister"], tokenizer, ["", "", " "])
    first, last = by_characters(["sist", "er", "sister"], ["", "", " "], aligned.offsets)
    assert (aligned.first == first).all() and (aligned.last == last).all()
    whole = tokenizer(" sister")["input_ids"]
    assert aligned.token_ids[aligned.first[2] :].tolist() == whole
    one = metaspace_of_whole_words()  # one token covers all three
    aligned = align_words(["sist", "er", "s"], one, "")
    assert aligned.first.tolist() == aligned.last.tolist() == [0, 0, 0]


def metaspace_of_whole_words():
    raw = Tokenizer(models.WordLevel({"sisters": 0, "?": 1}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?")


def test_a_token_without_characters_spells_nothing():
    offsets = [(0, 0), (0, 2), (1, 1), (2, 3), (3, 4), (4, 4)]

    def encode(text, **settings):
        assert text == "ab c" and settings["add_special_tokens"] is False
        return {"input_ids": list(range(6)), "offset_mapping": offsets}

    encode.is_fast = True
    aligned = align_words(["ab", "c"], encode)
    assert aligned.first.tolist() == aligned.last.tolist() == [1, 4]  # the space is token 3


def test_what_cannot_be_aligned_is_named():
    dropping = byte_level(drop="☃")
    with pytest.raises(ValueError, match=r"2 of 4 have no token \(first: words\[1\], '☃'\)"):
        align_words(["a", "☃", "b", "☃☃"], dropping)
    with pytest.raises(ValueError, match=r"1 of 3 have no token \(first: 'word-00003', '☃'\)"):
        list(WordInputs(dropping).batches(alice(words=("so", "a", "☃", "b"), runs=(1, 2, 1, 1)), 1))
    with pytest.raises(ValueError, match=r"PreTrainedTokenizer.*fast tokenizer"):
        align_words(["a"], type("SlowPreTrainedTokenizer", (), {"is_fast": False})())
    with pytest.raises(ValueError, match="joiner has 1 strings for 2 words"):
        align_words(["a", "b"], dropping, [" "])


def test_special_tokens_are_those_of_the_tokenizer():
    assert special_tokens(byte_level(), "a") == ((), ())
    assert special_tokens(metaspace(), "a") == ((1,), ())
    assert special_tokens(word_piece(), "☃") == ((1,), (2,))  # an unknown word is no special token


def test_digest_of_a_tokenizer_is_that_of_its_rules():
    assert tokenizer_digest(byte_level()) == tokenizer_digest(byte_level())
    assert len({tokenizer_digest(build()) for build in TOKENIZERS.values()}) == len(TOKENIZERS)


def test_digest_of_a_tokenizer_is_not_that_of_its_last_call():
    tokenizer = pickle.loads(pickle.dumps(byte_level()))
    tokenizer("a long text", truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert tokenizer_digest(tokenizer) == tokenizer_digest(byte_level())
    words = ["so", "she", "was"] * 5
    aligned, plain = align_words(words, tokenizer), align_words(words, byte_level())
    np.testing.assert_array_equal(aligned.token_ids, plain.token_ids)


def test_readers_travel_to_other_processes():
    inputs = WordInputs(word_piece(), 12, False, (1, 8), "mean", None, "centre")
    list(inputs.batches(alice(), 1))
    other = pickle.loads(pickle.dumps(inputs))
    assert other.spec() == inputs.spec()
    for (rows, batch), (same_rows, same) in zip(inputs.batches(alice(), 2), other.batches(alice(), 2), strict=True):
        assert rows == same_rows and all((batch[key] == same[key]).all() for key in batch)


def alice(words=("so", "she", "was", "so"), onsets=(0.0, 1.0, 2.0, 0.5), runs=(1, 1, 1, 2), **columns):
    stimuli = StimulusSet.from_words(list(words), onsets, runs=runs)
    return StimulusSet(stimuli.ids, stimuli.source, "word", stimuli.table.assign(**columns))


def test_digest_of_words_is_that_of_what_is_read():
    digest = TextInputs(byte_level()).reading(alice()).digest
    same = digest(alice())
    assert digest(alice(onsets=(0.1, 1.5, 2.0, 7.0))) == same  # another time, the same order
    assert digest(alice(runs=("b", "b", "b", "a"))) == same
    assert digest(alice(joiner=" ")) == same
    for other in (
        alice(words=("so", "she", "is", "so")),
        alice(runs=(1, 1, 2, 2)),
        alice(onsets=(0.0, 3.0, 2.0, 0.5)),
        alice(joiner=["", "-", " ", " "]),
    ):
        assert digest(other) != same


def test_words_are_read_by_run_in_the_order_of_their_onsets():
    inputs = WordInputs(byte_level())
    stimuli = alice(words=("she", "so", "so", "was"), onsets=(1.0, 0.0, 0.5, 2.0), runs=(1, 1, 2, 1))
    read = {}
    for rows, batch in inputs.batches(stimuli, 8):
        for row, (window, first, last) in zip(rows, batch["index"].tolist(), strict=True):
            read[row] = inputs.tokenizer.decode(batch["input_ids"][window]), first, last
    assert [read[row][0] for row in range(4)] == ["so she was", "so she was", "so", "so she was"]
    assert read[1][1] == 0 and read[1][2] < read[0][1] <= read[0][2] < read[3][1]


def test_words_from_a_table_without_times():
    stimuli = alice()
    bare = StimulusSet(stimuli.ids, stimuli.source, "word", pd.DataFrame({"joiner": ["", "", "-", " "]}))
    [(rows, batch)] = list(WordInputs(byte_level()).batches(bare, 8))
    assert rows == [0, 1, 2, 3]
    assert WordInputs(byte_level()).tokenizer.decode(batch["input_ids"][0]) == "soshe-was so"


def test_bad_words_and_settings_are_refused():
    inputs = TextInputs(byte_level())
    empty = StimulusSet.from_words(["so", " ", ""], [0, 1, 2])
    with pytest.raises(ValueError, match=r"2 words are empty \(first: 'word-00002'\)"):
        list(inputs.reading(empty).batches(empty, 1))
    sentences = StimulusSet.from_sentences(["so it goes"])
    assert inputs.reading(sentences) is inputs
    with pytest.raises(ValueError, match=r"pool='mean' is read for words only .*these stimuli are sentences"):
        inputs.reading(sentences, pool="mean")
    with pytest.raises(ValueError, match=r"context=\(1, 8\) is read for words only"):
        inputs.reading(sentences, context=(1, 8))
    with pytest.raises(ValueError, match="kind 'sentence'; this model reads stimuli of kind 'word'"):
        list(WordInputs(byte_level()).batches(sentences, 1))
    for context in (8, (0, 8), (9, 8), (1.5, 8), (8,)):
        with pytest.raises(ValueError, match=r"expected \(fewest, most\) tokens"):
            inputs.reading(empty, context=context)
    with pytest.raises(ValueError, match=r"pool 'lsat'.*last|lsat.*last"):
        inputs.reading(empty, pool="lsat")
    with pytest.raises(ValueError, match="edge"):
        WordInputs(byte_level(), edge="left")
    with pytest.raises(ValueError, match=r"bos=True, but the tokenizer has no token"):
        list(WordInputs(byte_level(), bos=True).batches(alice(), 1))
