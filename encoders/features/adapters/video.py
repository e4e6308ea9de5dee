"""Video clips: VideoMAE and V-JEPA 2 of transformers, and models of images shown frame by frame."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from ....datasets.errors import unknown
from ....datasets.stimuli import StimulusSet
from ..registry import Inputs, Model
from ..vision import IMAGENET_MEAN, IMAGENET_STD, require_kind, stacked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the preprocessors of these models do where their file leaves it out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "videomae": {"crop_size": 224, "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
    "vjepa2": {"crop_size": 256, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
}
# Frames and frame rate of the clips of a set, where they are all alike.
_COMMON: WeakKeyDictionary[StimulusSet, tuple[int, float] | None] = WeakKeyDictionary()


def sample_frames(n: int, frames: int, fps: float = float("nan"), rate: float | None = None) -> np.ndarray:
    """Which frames of a clip a model is shown.

    Parameters
    ----------
    n : int
        Frames that the clip has.
    frames : int
        Frames that are wanted.
    fps : float
        Frames per second of the clip; read with `rate` only.
    rate : float, optional
        Frames per second that the model is shown, from the first frame on; where the clip is over, its last frame
        stays. Default: from the first frame to the last at equal distances, whatever the length of the clip; a clip
        of fewer frames shows some of them twice.

    Returns
    -------
    ndarray of int, shape (frames,)
    """
    if rate is None:
        return np.rint(np.linspace(0, n - 1, frames)).astype(int)
    if not fps > 0:
        raise ValueError(f"rate={rate:g} needs the frames per second of the clip, which are not known; give fps=")
    return np.minimum(np.floor(np.arange(frames) * fps / rate + 1e-6).astype(int), n - 1)


@dataclass(frozen=True)
class ClipInputs:
    """Frames of a clip, resized, cropped and normalised, for a model of video.

    Attributes
    ----------
    size : tuple of int
        Height and width that the module reads.
    frames : int
        Frames that the module reads.
    shortest : int or None
        First bring the shorter side to this many pixels, then crop the centre to `size`; None resizes whole frames.
    mean, std : tuple of float
        Per channel, of pixels multiplied by `scale`.
    scale : float
        1 / 255 brings pixels to [0, 1].
    rate : float or None
        See `sample_frames`.
    tubelet : int
        Frames that the module joins into one step of time.
    key : str
        What the module calls its input, (clip, frame, channel, height, width).
    resample : str
        Name of a filter of PIL.
    """

    size: tuple[int, int]
    frames: int
    shortest: int | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    rate: float | None = None
    tubelet: int = 2
    key: str = "pixel_values"
    resample: str = "bilinear"

    def decode(self, stimuli: StimulusSet, rows: Sequence[int]) -> list[np.ndarray]:
        """Clips at positions as uint8 (frame, height, width, 3): what a worker does."""
        require_kind(stimuli, "clip")
        return [self._read(stimuli, row) for row in rows]

    def finish(
        self,
        batch: Mapping[str, torch.Tensor],
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> dict[str, torch.Tensor]:
        """Decoded clips, uint8 (clip, frame, height, width, 3), as the module reads them: what the device does.

        `memory_format` is for maps of images and not used: clips have an axis more.
        """
        [pixels] = batch.values()
        x = pixels.to(device, non_blocking=True).permute(0, 1, 4, 2, 3).to(torch.float32, copy=True)
        x /= 1 / self.scale
        x -= torch.tensor(self.mean, dtype=torch.float32, device=x.device)[:, None, None]
        x /= torch.tensor(self.std, dtype=torch.float32, device=x.device)[:, None, None]
        return {self.key: x.contiguous()}

    def batches(self, stimuli: StimulusSet, size: int) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        for start in range(0, len(stimuli), size):
            rows = list(range(start, min(start + size, len(stimuli))))
            yield rows, self.finish({"x": stacked(stimuli, rows, self.decode(stimuli, rows))}, torch.device("cpu"))

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__} | vars(self)

    def digest(self, stimuli: StimulusSet) -> str:
        # Frames per second are an annotation, which the hash of the content leaves out.
        rates = "" if self.rate is None or "fps" not in stimuli.table else f" {stimuli.table['fps'].tolist()}"
        return stimuli.content_hash + rates

    def times(self, stimuli: StimulusSet) -> np.ndarray | None:
        """Middle of each step of time in seconds from the start of the clip, (step,); None where clips differ in it.

        Every clip is decoded for it, once.
        """
        common = _common(stimuli)
        if common is None:
            return None
        length, fps = common
        shown = sample_frames(length, self.frames, fps, self.rate) / fps
        return (shown + 0.5 / fps).reshape(-1, self.tubelet).mean(1)

    def clock(self, layer: str, shape: tuple[int, ...], stimuli: StimulusSet) -> np.ndarray | None:
        """Seconds of every token of a layer, (token,); time varies slowest.

        `shape` is that for one stimulus: (token, feature), or (channel, time, height, width).
        """
        steps = self.frames // self.tubelet
        tokens = shape[0] if len(shape) == 2 else int(np.prod(shape[1:])) if len(shape) == 4 else 0
        if not tokens or tokens % steps or (len(shape) == 4 and shape[1] != steps):
            return None
        times = self.times(stimuli)
        return None if times is None else np.repeat(times, tokens // steps)

    def _read(self, stimuli: StimulusSet, row: int) -> np.ndarray:
        clip, fps = stimuli.clip(row)
        try:
            shown = sample_frames(len(clip), self.frames, fps, self.rate)
        except ValueError as error:
            raise ValueError(f"stimulus {stimuli.ids[row]!r}: {error}") from error
        places, where = np.unique(shown, return_inverse=True)  # a frame that is shown twice is resized once
        return np.stack([self._resized(clip[place]) for place in places])[where]

    def _resized(self, frame: np.ndarray) -> np.ndarray:
        image = Image.fromarray(frame)
        height, width = self.size
        method = Image.Resampling[self.resample.upper()]
        if self.shortest is None:
            return np.asarray(image.resize((width, height), method))
        short = min(image.size)
        image = image.resize((self.shortest * image.width // short, self.shortest * image.height // short), method)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return np.asarray(image.crop((left, top, left + width, top + height)))


def _common(stimuli: StimulusSet) -> tuple[int, float] | None:
    """Frames and frames per second that all clips have; None where they differ or are not known."""
    if stimuli not in _COMMON:
        _COMMON[stimuli] = None
        found: set[tuple[int, float]] = set()
        for row in range(len(stimuli)):
            try:
                frames, fps = stimuli.clip(row)
            except (ValueError, OSError):  # left out of the features, or reported there
                continue
            found.add((len(frames), fps))
            if len(found) > 1 or not fps > 0:
                return None
        _COMMON[stimuli] = found.pop() if found else None
    return _COMMON[stimuli]


class VideoEncoder(nn.Module):
    """The encoder of V-JEPA 2 without its predictor, whose tokens nobody asks for; names of layers stay.

    Parameters
    ----------
    model : VJEPA2Model
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self.encoder = model.encoder

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Last hidden state, (clip, token, feature), of clips (clip, frame, channel, height, width)."""
        return self.encoder(pixel_values_videos).last_hidden_state

    def redrawn(self) -> VideoEncoder:
        """A copy with random weights, from the state of torch's generator."""
        from transformers import VJEPA2Model

        return VideoEncoder(VJEPA2Model(copy.deepcopy(self.config))).eval()


def video_model(label: str, module: PreTrainedModel, name: str) -> Model:
    """A model of video of transformers.

    Parameters
    ----------
    label : str
        Name of the model in tables.
    module : VideoMAEModel or VJEPA2Model
    name : str
        Name on the hub, or local folder, that holds the preprocessing (``video_preprocessor_config.json`` or
        ``preprocessor_config.json``).

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        If the preprocessing is missing, the model does not read three channels, or it is of another type.
    """
    config = module.config
    kind = config.model_type
    if kind not in _DEFAULTS:
        raise ValueError(unknown("model", kind, _DEFAULTS, "Only these types of models of video are read here."))
    channels = getattr(config, "in_chans", None) or getattr(config, "num_channels", 3)
    if channels != 3:
        raise ValueError(f"model={name!r} reads {channels} channels; clips have 3, red, green and blue")
    frames = getattr(config, "frames_per_clip", None) or config.num_frames
    inputs = clip_inputs(
        video_settings(name),
        kind,
        frames=int(frames),
        tubelet=int(config.tubelet_size),
        key="pixel_values_videos" if kind == "vjepa2" else "pixel_values",
    )
    inside = VideoEncoder(module) if kind == "vjepa2" else module
    return Model(label, inside.eval(), inputs, clock=inputs.clock, special_tokens=0)


def video_settings(name: str) -> dict[str, Any]:
    """What the preprocessor file of a model of video says."""
    from transformers.video_processing_utils import BaseVideoProcessor

    try:
        settings, _ = BaseVideoProcessor.get_video_processor_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model={name!r} comes without its preprocessing of clips; put its video_preprocessor_config.json or "
            "preprocessor_config.json beside the weights"
        ) from error
    return settings


def clip_inputs(settings: Mapping[str, Any], kind: str, *, frames: int, tubelet: int, key: str) -> ClipInputs:
    """Preprocessing of clips as the preprocessor file of a model says.

    Parameters
    ----------
    settings : mapping
        From `video_settings`.
    kind : {"videomae", "vjepa2"}
        Whose defaults stand in for what `settings` leave out.
    frames, tubelet, key
        See `ClipInputs`.
    """
    settings = dict(_DEFAULTS[kind]) | {k: v for k, v in settings.items() if v is not None}
    crop = settings["crop_size"]
    height, width = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
    size: Any = settings.get("size", height)
    if kind == "vjepa2":  # this family derives the size from the crop, whatever the file says
        size = int(height * 256 / 224)
    shortest = size if isinstance(size, int) else size.get("shortest_edge")
    if not settings.get("do_resize", True) or (not settings.get("do_center_crop", True) and shortest is not None):
        raise ValueError(
            "the preprocessing does not bring clips to one size; set do_resize and do_center_crop in its file"
        )
    if shortest is None:
        if settings.get("do_center_crop", True) and (size["height"], size["width"]) != (height, width):
            raise ValueError(f"the preprocessing resizes to {size} and crops to {crop}; give one of them in its file")
        height, width = size["height"], size["width"]
    normalise = settings.get("do_normalize", True)
    return ClipInputs(
        (int(height), int(width)),
        frames,
        None if shortest is None else int(shortest),
        tuple(settings["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        tuple(settings["image_std"]) if normalise else (1.0, 1.0, 1.0),
        float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
        tubelet=tubelet,
        key=key,
        resample=Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR)).name.lower(),
    )


# --------------------------------------------------------------------------------------- models of images


@dataclass(frozen=True)
class FrameInputs:
    """Clips for a model of images: each frame is an image, and a layer is averaged over the frames of a clip.

    Attributes
    ----------
    images : Inputs
        How the model reads images.
    frames : int
        Frames of each clip, at equal distances from the first to the last.
    """

    images: Inputs
    frames: int

    by_item = True

    def batches(
        self, stimuli: StimulusSet, size: int, rows: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Frames of whole clips together, as many clips as fit into `size` images, at least one."""
        require_kind(stimuli, "clip")
        left = list(range(len(stimuli)) if rows is None else rows)
        clips = max(1, size // self.frames)
        for start in range(0, len(left), clips):
            part = left[start : start + clips]
            shown = clip_frames(stimuli[part], self.frames)
            yield part, self._read(shown) | {"index": torch.arange(len(part))[:, None]}

    def gather(self, layer: str, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Mean over the frames of each clip: (clip x frame, ...) becomes (clip, ...)."""
        return tensor.unflatten(0, (len(index), self.frames)).mean(1, dtype=torch.float32)

    def row_shape(self, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a layer for one clip, which is that for one image."""
        return shape

    def probe(self, stimuli: StimulusSet) -> dict[str, torch.Tensor]:
        """Two images: the first and the last frame of the first clip."""
        require_kind(stimuli, "clip")
        return self._read(clip_frames(stimuli[[0]], 2))

    def spec(self) -> Mapping[str, Any]:
        return {"reader": type(self).__name__, "frames": self.frames, "images": dict(self.images.spec())}

    def digest(self, stimuli: StimulusSet) -> str:
        require_kind(stimuli, "clip")
        # A reader of one's own tells by an image whether it has changed; the first clip may be one that cannot be read.
        ramp = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 64, 64, 3)
        return f"{stimuli.content_hash} {self.images.digest(StimulusSet.from_images(ramp))}"

    def _read(self, shown: StimulusSet) -> dict[str, torch.Tensor]:
        read: dict[str, torch.Tensor] = {}
        for rows, batch in self.images.batches(shown, len(shown)):
            if rows != list(range(len(shown))):
                raise ValueError("frames: the model's reader of images splits or reorders them; it cannot read clips")
            read = batch
        return read


def on_frames(model: Model, frames: int = 8) -> Model:
    """A model of images as a model of clips: features averaged over frames.

    Parameters
    ----------
    model : Model
        From `load_model`; it reads images.
    frames : int
        Frames of each clip, at equal distances from the first to the last. A clip of fewer shows some twice.

    Returns
    -------
    Model

    Notes
    -----
    Means over frames and over places commute, so that ``reduce="mean"`` and grids are those of the mean frame. For one
    row per frame, extract from `clip_frames` instead.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}; expected at least 1")
    if isinstance(model.inputs, FrameInputs | ClipInputs):
        raise ValueError(f"model {model.name} reads clips already; give a model of images")
    return replace(model, inputs=FrameInputs(model.inputs, int(frames)))


def clip_frames(stimuli: StimulusSet, frames: int) -> StimulusSet:
    """Frames of clips as images, ``frames`` of each, in memory.

    Returns
    -------
    StimulusSet
        Of images; ids "CLIP@1", ..., and a table with columns ``clip`` (id), ``frame`` (position in the clip) and
        ``time`` (seconds from its start to the middle of the frame, NaN where frames per second are not known).
    """
    images, table = [], []
    for row, one in enumerate(stimuli.ids):
        clip, fps = stimuli.clip(row)
        for place in sample_frames(len(clip), frames):
            images.append(clip[place])
            table.append((one, int(place), (place + 0.5) / fps))
    ids = [f"{one}@{number}" for one in stimuli.ids for number in range(1, frames + 1)]
    return StimulusSet.from_images(images, ids, pd.DataFrame(table, columns=["clip", "frame", "time"]))
