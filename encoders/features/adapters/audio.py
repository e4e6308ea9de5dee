"""Sounds: wav2vec 2.0, HuBERT and their kin, and the encoder of Whisper; windows over long sounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ....datasets.sources import Items
from ....datasets.stimuli import StimulusSet
from ..digest import digest_of
from ..registry import Model
from ..vision import require_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """One channel of a sound at another sampling rate.

    Parameters
    ----------
    samples : ndarray of float, shape (sample,) or (sample, channel)
        Channels are averaged.
    rate, wanted : int
        Hertz.

    Returns
    -------
    ndarray of float32, shape (ceil(sample * wanted / rate),)
        By a polyphase filter, without frequencies above half of either rate.
    """
    from scipy.signal import resample_poly

    mono = samples if samples.ndim == 1 else samples.mean(1)
    common = gcd(rate, wanted)
    if rate != wanted:
        mono = resample_poly(mono, wanted // common, rate // common)
    return np.asarray(mono, np.float32)


def _refuse_words(context: object, pool: object) -> None:
    for name, value in (("context", context), ("pool", pool)):
        if value is not None:
            raise ValueError(f"{name}={value!r} is read for words only; these stimuli are sounds: leave it out")


class _SoundReader:
    """What all readers of sounds share: a mono signal at one rate, by position."""

    rate: int
    by_item = True

    def samples(self, stimuli: StimulusSet, row: int) -> np.ndarray:
        """Samples of a sound at the rate of the model, (sample,)."""
        found, rate = stimuli.sound(row)
        return resampled(found, rate, self.rate)

    def length(self, stimuli: StimulusSet, row: int) -> int:
        """How many samples that is, without resampling."""
        found, rate = stimuli.sound(row)
        return -(-len(found) * self.rate // rate)

    def lengths(self, stimuli: StimulusSet, rows: Sequence[int]) -> dict[int, list[int]]:
        """Positions by length in samples."""
        by_length: dict[int, list[int]] = {}
        for row in rows:
            by_length.setdefault(self.length(stimuli, row), []).append(row)
        return by_length

    def digest(self, stimuli: StimulusSet) -> str:
        require_kind(stimuli, "sound")
        return stimuli.content_hash


@dataclass(frozen=True)
class SoundInputs(_SoundReader):
    """Waveforms for a model that reads samples.

    A batch holds sounds of one length only. Silence behind a shorter sound changes what some models say of it: a group
    norm over time sees the silence, whatever the attention is told to leave out.

    Attributes
    ----------
    rate : int
        Hertz that the model reads.
    normalise : bool
        Bring each sound to mean 0 and variance 1.
    shortest : int
        Samples that give the model its first frame.
    """

    rate: int = 16000
    normalise: bool = True
    shortest: int = 1

    def batches(
        self, stimuli: StimulusSet, size: int, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        require_kind(stimuli, "sound")
        by_length = self.lengths(stimuli, range(len(stimuli)) if rows is None else rows)
        for length, members in sorted(by_length.items()):
            if length < self.shortest:
                raise ValueError(
                    f"stimulus {stimuli.ids[members[0]]!r} has {length} samples at {self.rate} Hz; the model needs at "
                    f"least {self.shortest}: leave it out, or put silence around it"
                )
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                yield batch, {"input_values": torch.stack([self._read(stimuli, row) for row in batch])}

    def probe(self, stimuli: StimulusSet) -> dict[str, torch.Tensor]:
        """Two sounds of one length: the first as it is and backwards."""
        _, batch = next(self.batches(stimuli, 1, [0]))
        return {name: torch.cat([x, x.flip(1)]) for name, x in batch.items()}

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "rate": self.rate, "normalise": self.normalise}

    def _read(self, stimuli: StimulusSet, row: int) -> torch.Tensor:
        samples = self.samples(stimuli, row)
        if self.normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return torch.from_numpy(np.ascontiguousarray(samples, np.float32))


@dataclass(frozen=True)
class WhisperInputs(_SoundReader):
    """Log-mel spectrograms for the encoder of Whisper.

    The encoder reads windows of one length (30 s), silence after the end of the sound included, as it was trained.
    What is kept of a layer are the frames of the sound: ``ceil(samples / 320)``.

    Attributes
    ----------
    extractor : WhisperFeatureExtractor
    positions : int
        Frames that the encoder gives for a whole window.
    columns : int or None
        Columns of the spectrogram that the sounds fill; see `reading`.
    """

    extractor: Any
    positions: int
    columns: int | None = None

    @property
    def rate(self) -> int:  # type: ignore[override]
        """Hertz that the model reads."""
        return int(self.extractor.sampling_rate)

    def reading(
        self, stimuli: StimulusSet, context: tuple[int, int] | None = None, pool: str | None = None
    ) -> WhisperInputs:
        """The same reader, knowing how many frames these sounds have: where frames are kept, all have as many.

        Raises
        ------
        ValueError
            If `context` or `pool` is given.
        """
        require_kind(stimuli, "sound")
        _refuse_words(context, pool)
        for row in range(len(stimuli)):
            try:
                return replace(self, columns=self._columns(self.length(stimuli, row)))
            except (ValueError, OSError):  # the next may be readable
                continue
        return self

    def batches(
        self, stimuli: StimulusSet, size: int, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Sounds that fill the same number of frames together."""
        require_kind(stimuli, "sound")
        by_columns: dict[int, list[int]] = {}
        for length, members in self.lengths(stimuli, range(len(stimuli)) if rows is None else rows).items():
            if not 0 < length <= self.extractor.n_samples:
                seconds = self.extractor.n_samples / self.rate
                raise ValueError(
                    f"stimulus {stimuli.ids[members[0]]!r} lasts {length / self.rate:g} s; this model reads more than "
                    f"0 and at most {seconds:g} s: cut it with sound_windows(stimuli, seconds, stride)"
                )
            by_columns.setdefault(self._columns(length), []).extend(members)
        for columns, members in sorted(by_columns.items()):
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                sounds = [self.samples(stimuli, row) for row in batch]
                yield batch, self._read(sounds) | {"index": torch.full((len(batch), 1), columns)}

    def gather(self, layer: str, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Of (sound, frame, feature), the frames of the sounds; attention maps are kept whole."""
        kept = self._kept(tuple(tensor.shape[1:]), int(index[0, 0]))
        return tensor if kept is None else tensor[:, :kept]

    def row_shape(self, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a layer for one sound, given that for a whole window."""
        kept = None if self.columns is None else self._kept(shape, self.columns)
        return shape if kept is None else (kept, *shape[1:])

    def probe(self, stimuli: StimulusSet) -> dict[str, torch.Tensor]:
        """Two windows: the first sound as it is and backwards."""
        require_kind(stimuli, "sound")
        samples = self.samples(stimuli, 0)[: self.extractor.n_samples]
        return self._read([samples, samples[::-1].copy()])

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "extractor": digest_of(self.extractor, "preprocessor_config.json")}

    def _columns(self, length: int) -> int:
        """Columns of the spectrogram that so many samples fill."""
        return -(-length // int(self.extractor.hop_length))

    def _kept(self, shape: tuple[int, ...], columns: int) -> int | None:
        """Places of the first axis that belong to the sound; None where it is not time."""
        if len(shape) != 2 or shape[0] not in (self.positions, 2 * self.positions):
            return None
        return columns if shape[0] == 2 * self.positions else -(-columns // 2)  # the second convolution halves the rate

    def _read(self, sounds: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        read = self.extractor(list(sounds), sampling_rate=self.rate, return_tensors="pt")
        return {"input_features": read["input_features"].float()}


@dataclass(frozen=True)
class RightEdge:
    """The last frames of each sound only, for windows that slide over a long one.

    Attributes
    ----------
    sounds : Inputs
        How the model reads sounds.
    last : int
        Frames that are kept.
    """

    sounds: Any
    last: int

    by_item = True

    def reading(
        self, stimuli: StimulusSet, context: tuple[int, int] | None = None, pool: str | None = None
    ) -> RightEdge:
        _refuse_words(context, pool)
        return replace(self, sounds=self.sounds.reading(stimuli)) if hasattr(self.sounds, "reading") else self

    def batches(
        self, stimuli: StimulusSet, size: int, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        for places, batch in self.sounds.batches(stimuli, size, rows):
            yield places, {"index": torch.zeros(len(places), 1, dtype=torch.long)} | batch

    def gather(self, layer: str, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if hasattr(self.sounds, "gather"):
            tensor = self.sounds.gather(layer, tensor, index)
        return tensor[:, -self.last :] if tensor.ndim == 3 else tensor

    def row_shape(self, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if hasattr(self.sounds, "row_shape"):
            shape = self.sounds.row_shape(layer, shape)
        return (min(self.last, shape[0]), *shape[1:]) if len(shape) == 2 else shape

    def probe(self, stimuli: StimulusSet) -> dict[str, torch.Tensor]:
        return self.sounds.probe(stimuli)

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "last": self.last, "sounds": dict(self.sounds.spec())}

    def digest(self, stimuli: StimulusSet) -> str:
        return self.sounds.digest(stimuli)


# ----------------------------------------------------------------------------------------------- builders


def audio_model(label: str, module: PreTrainedModel, name: str) -> Model:
    """A model of sound of transformers.

    Parameters
    ----------
    label : str
        Name of the model in tables.
    module : PreTrainedModel
        ``WhisperModel``, of which the encoder is taken, or one that reads ``input_values``: wav2vec 2.0, HuBERT, WavLM.
    name : str
        Name on the hub, or local folder, that holds ``preprocessor_config.json``.

    Returns
    -------
    Model
        That averages over frames when no reduction is named, since sounds differ in length.

    Raises
    ------
    ValueError
        If the preprocessing is missing or does not belong to the model.
    """
    if module.config.model_type == "whisper":
        return _whisper(label, module, name)
    config = module.config
    if not hasattr(config, "conv_kernel"):
        raise ValueError(
            f"model={name!r} is of type {config.model_type!r}; of models of sound, those that read samples through "
            "convolutions (wav2vec 2.0, HuBERT, WavLM) and Whisper are read here"
        )
    extractor = _extractor("Wav2Vec2FeatureExtractor", name)
    kernels = list(zip(config.conv_kernel, config.conv_stride, strict=True))
    inputs = SoundInputs(int(extractor.sampling_rate), bool(extractor.do_normalize), _receptive(kernels)[0])

    def clock(layer: str, shape: tuple[int, ...], stimuli: StimulusSet) -> np.ndarray | None:
        if len(shape) != 2 or "adapter" in layer or "pos_conv_embed" in layer:
            return None
        convolution = layer.partition("conv_layers.")[2].partition(".")[0]
        field, stride = _receptive(kernels[: int(convolution) + 1] if convolution.isdigit() else kernels)
        return (np.arange(shape[0]) * stride + field / 2) / inputs.rate

    stable = getattr(config, "do_stable_layer_norm", False)
    norm = (
        "encoder.layer_norm after the last block is the last hidden state; the last block is not normalised"
        if stable
        else "the last block is the last hidden state, with the norm inside it"
    )
    return Model(label, module.eval(), inputs, pool="mean", clock=clock, norm=norm, special_tokens=0)


def _whisper(label: str, module: PreTrainedModel, name: str) -> Model:
    encoder = getattr(module, "encoder", module)
    extractor = _extractor("WhisperFeatureExtractor", name, dither=0.0)  # random, and off in every published model
    positions, bins = int(encoder.config.max_source_positions), int(encoder.config.num_mel_bins)
    if extractor.nb_max_frames != 2 * positions or extractor.feature_size != bins:
        raise ValueError(
            f"model={name!r} reads spectrograms of {bins} bins and {2 * positions} frames; its "
            f"preprocessor_config.json makes {extractor.feature_size} bins and {extractor.nb_max_frames} frames"
        )
    inputs = WhisperInputs(extractor, positions)
    seconds = extractor.hop_length / extractor.sampling_rate

    def clock(layer: str, shape: tuple[int, ...], stimuli: StimulusSet) -> np.ndarray | None:
        if len(shape) != 2:
            return None
        return np.arange(shape[0]) * seconds * (1 if layer.partition("@")[0].endswith("conv1") else 2)

    return Model(label, encoder.eval(), inputs, pool="mean", clock=clock, special_tokens=0)


def _receptive(kernels: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Samples that one frame sees, and samples from frame to frame, after convolutions (kernel, stride)."""
    field, stride = 1, 1
    for kernel, step in kernels:
        field += (kernel - 1) * stride
        stride *= step
    return field, stride


def _extractor(kind: str, name: str, **settings: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model={name!r} comes without its preprocessing of sounds; put its preprocessor_config.json beside the "
            f"weights ({kind}().save_pretrained(folder) writes one)"
        ) from error


# ------------------------------------------------------------------------------------------ sliding windows


def sound_windows(stimuli: StimulusSet, seconds: float, stride: float) -> StimulusSet:
    """Windows that slide over sounds, as stimuli of their own.

    Parameters
    ----------
    stimuli : StimulusSet
        Of sounds.
    seconds : float
        Length of a window. Sounds that are shorter give none.
    stride : float
        Seconds from one window to the next.

    Returns
    -------
    StimulusSet
        Of sounds, all of one length; ids "SOUND@00001", ..., and a table with columns ``sound`` (id), ``onset`` and
        ``offset`` (seconds; the window ends at ``offset``, the first at `seconds`). Windows share the memory of the
        sound that they are cut from.

    Raises
    ------
    ValueError
        If a length is not positive, or no sound is as long as a window.
    """
    require_kind(stimuli, "sound")
    for argument, value in (("seconds", seconds), ("stride", stride)):
        if not value > 0:
            raise ValueError(f"{argument}={value!r}; expected a length in seconds above 0")
    items: list[tuple[np.ndarray, int]] = []
    ids, table = [], []
    for row, one in enumerate(stimuli.ids):
        samples, rate = stimuli.sound(row)
        length = max(1, round(seconds * rate))
        n = int((len(samples) - length) / rate / stride + 1e-9) + 1 if len(samples) >= length else 0
        for number in range(n):
            start = round(number * stride * rate)
            start = min(start, len(samples) - length)  # rounding
            items.append((samples[start : start + length], rate))
            ids.append(f"{one}@{number + 1:05d}")
            table.append((one, start / rate, (start + length) / rate))
    if not items:
        raise ValueError(f"seconds={seconds:g}: none of {len(stimuli)} sounds is as long as a window; shorten it")
    columns = pd.DataFrame(table, columns=["sound", "onset", "offset"])
    return StimulusSet(ids, Items(items), "sound", columns, name=stimuli.name)


def right_edge(model: Model, frames: int) -> Model:
    """A model of sound of which only the last frames are kept: those that see the whole window before them.

    Parameters
    ----------
    model : Model
        From `load_model`; it reads sounds.
    frames : int
        Frames kept of each sound. With windows of stride ``frames`` times the model's frame, one pass gives so many
        rows of features of a continuous sound.

    Returns
    -------
    Model
        Whose frames are not averaged unless a reduction is named.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}; expected at least 1")
    if not isinstance(model.inputs, _SoundReader):
        raise ValueError(f"model {model.name} does not read sounds; right_edge keeps the last frames of a sound")
    return replace(model, inputs=RightEdge(model.inputs, int(frames)), pool=None, clock=None)
