"""Images, clips and sounds as they are stored, turned into arrays of one convention; how their files are named."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
CLIP_SUFFIXES = (".npy", ".gif", ".webp", ".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its suffix, and neither hidden nor left behind by macOS."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def short_names(paths: Sequence[Path]) -> list[str]:
    """Shortest names that tell files apart: stem, path without suffix, whole path."""
    for names in ([path.stem for path in paths], [path.with_suffix("").as_posix() for path in paths]):
        if len(set(names)) == len(names):
            return names
    return [path.as_posix() for path in paths]


def existing_files(entries: Sequence[str | Path], argument: str) -> list[Path]:
    """Paths of files that are all there."""
    files = [Path(entry) for entry in entries]
    absent = [path for path in files if not path.is_file()]
    if absent:
        raise FileNotFoundError(f"{len(absent)} of {len(files)} files of {argument} are absent, first {absent[0]}.")
    return files


def check_stack(shape: tuple[int, ...], argument: str) -> None:
    """Refuse what is no stack (stimulus, height, width, 3) or (stimulus, height, width), above all one image."""
    single = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4))
    if single or len(shape) not in (3, 4):
        raise ValueError(
            f"{argument} has shape {shape}; expected (stimulus, height, width, 3) or (stimulus, height, width). "
            "Put a single image in a list."
        )
    check_channels(shape[1:], argument)


def check_channels(shape: tuple[int, ...], argument: str) -> None:
    """Refuse an image that is neither (height, width, 3) nor (height, width)."""
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3):
        return
    first = len(shape) == 3 and shape[0] in (1, 3)
    mend = " Move the channels last with transpose(0, 2, 3, 1)." if first else ""
    raise ValueError(f"an image of {argument} has shape {shape}; expected (height, width, 3) or (height, width).{mend}")


def as_uint8(images: np.ndarray, argument: str) -> np.ndarray:
    """Images as uint8; floats within [0, 1] are scaled, anything else is refused."""
    if images.dtype == np.uint8:
        return images
    found = str(images.dtype)
    if np.issubdtype(images.dtype, np.floating):
        low, high = (images.min(), images.max()) if images.size else (0, 0)
        if low >= 0 and high <= 1:  # false for NaN
            out = np.empty(images.shape, dtype=np.uint8)
            for row, image in enumerate(images):  # by rows: a large stack is not held twice as float
                out[row] = np.rint(255 * image)
            return out
        found += f" from {low:g} to {high:g}"
    raise ValueError(f"{argument} is {found}; expected uint8, or floats within [0, 1].")


def decode_image(item: bytes | np.ndarray) -> Image:
    """PIL RGB image of an encoded file or a uint8 array, as :func:`as_rgb` makes it.

    Raises
    ------
    ValueError
        The bytes are no whole image, or one too large to be decoded safely.
    """
    from PIL import Image

    if isinstance(item, np.ndarray):
        return as_rgb(Image.fromarray(item))
    try:
        image = Image.open(io.BytesIO(item))
        image.load()
    except Exception as error:  # decoders of damaged files fail in many ways
        reason = str(error).partition("<")[0].strip() or type(error).__name__
        raise ValueError(f"{len(item)} bytes are not a whole image: {reason}") from error
    return as_rgb(image)


def stack_images(named: Iterable[tuple[str, Image]], n: int, size: int | None) -> np.ndarray:
    """`n` RGB images, each after its stimulus id, as one array (image, height, width, 3); `size` resizes them."""
    from PIL.Image import Resampling

    out = np.empty((0, 0, 0, 3), dtype=np.uint8)
    first = ""
    for position, (name, image) in enumerate(named):
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Resampling.BICUBIC)
        if position == 0:
            out, first = np.empty((n, image.height, image.width, 3), dtype=np.uint8), name
        elif (image.height, image.width) != out.shape[1:3]:
            raise ValueError(
                f"images differ in size: {first!r} is {out.shape[2]} x {out.shape[1]} pixels, {name!r} is "
                f"{image.width} x {image.height}; give size= to resize them."
            )
        out[position] = np.asarray(image)
    return out


def as_rgb(image: Image) -> Image:
    """A PIL image of any mode as RGB, turned upright as its EXIF data says; an alpha channel is dropped.

    Of 16-bit grey the upper byte is kept, floats within [0, 1] are scaled, and 32-bit integers must lie within
    [0, 255].
    """
    from PIL import Image, ImageOps

    # PNG holds no 32-bit integers: where PIL says so, 16 bits are meant.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if sixteen:
        # PIL would clip at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(as_uint8(np.asarray(image), "an image of mode F"))
    elif image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 255:
            raise ValueError(
                f"an image of mode I runs from {grey.min()} to {grey.max()}; expected values within [0, 255]. Scale "
                "it, or save it as 16-bit grey."
            )
        image = Image.fromarray(grey.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def as_frames(frames: np.ndarray, argument: str) -> np.ndarray:
    """A clip as uint8 (frame, height, width, 3) or (frame, height, width); anything else is refused."""
    if frames.ndim not in (3, 4) or (frames.ndim == 3 and frames.shape[-1] == 3):
        raise ValueError(
            f"{argument} has shape {frames.shape}; expected a clip (frame, height, width, 3) or (frame, height, width)."
        )
    if not frames.size:
        raise ValueError(f"{argument} has shape {frames.shape}: a clip without frames or pixels; leave it out.")
    if frames.ndim == 4:
        if frames.shape[-1] != 3 and 3 in frames.shape[:2]:
            mend = "transpose(1, 2, 3, 0)" if frames.shape[0] == 3 else "transpose(0, 2, 3, 1)"
            raise ValueError(
                f"{argument} has shape {frames.shape}; expected a clip (frame, height, width, 3). Move the channels "
                f"last with {mend}."
            )
        check_channels(frames.shape[1:], argument)
    return as_uint8(frames, argument)


def decode_clip(item: bytes | np.ndarray) -> tuple[np.ndarray, float]:
    """Frames of a clip as RGB, and its frame rate where the file tells one.

    Returns
    -------
    frames : ndarray of uint8, shape (frame, height, width, 3)
    fps : float
        Frames per second; NaN for arrays, ``.npy`` files, and animations without durations. Of an animation whose
        frames last differently, the mean rate.

    Raises
    ------
    ValueError
        The bytes are no whole clip.
    ImportError
        A video file, and PyAV is not installed.
    """
    if isinstance(item, bytes):
        try:
            frames, fps = _decoded_clip(item)
        except ImportError:
            raise
        except Exception as error:  # decoders of damaged files fail in many ways
            reason = str(error).partition("<")[0].strip() or type(error).__name__
            raise ValueError(f"{len(item)} bytes are not a whole clip: {reason}") from error
    else:
        frames, fps = item, float("nan")
    frames = as_frames(frames, "the clip")
    return (np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames), fps


def _decoded_clip(item: bytes) -> tuple[np.ndarray, float]:
    if item[:6] == b"\x93NUMPY":
        return np.load(io.BytesIO(item), allow_pickle=False), float("nan")
    if item[:4] == b"GIF8" or (item[:4] == b"RIFF" and item[8:12] == b"WEBP"):
        from PIL import Image, ImageSequence

        # The decoder takes what is there for all there is.
        ends = item.rstrip(b"\0").endswith(b";") if item[:1] == b"G" else len(item) >= _riff_length(item)
        if not ends:
            raise ValueError("the file was cut off")
        frames, durations = [], []
        for frame in ImageSequence.Iterator(Image.open(io.BytesIO(item))):
            frames.append(np.asarray(as_rgb(frame.copy())))
            durations.append(frame.info.get("duration", 0))
        seconds = sum(durations) / 1000
        return np.stack(frames), len(frames) / seconds if seconds > 0 else float("nan")
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "video files are decoded by PyAV, which is not installed: pip install 'neuralign[video]', or give clips "
            "as arrays, .npy, .gif or .webp files."
        ) from error
    with av.open(io.BytesIO(item)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return np.stack(frames), float(rate) if rate else float("nan")


def decode_sound(item: bytes | tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    """Samples as float32 within [-1, 1] and sampling rate in hertz of a sound file or of stored samples.

    Wav files are read by scipy, others (flac, ogg, mp3) by soundfile where it is installed. Integers are divided by
    full scale; unsigned 8-bit, as wav files hold it, is centred first.

    Raises
    ------
    ValueError
        The bytes are no sound file, or it was cut off.
    ImportError
        No wav file, and soundfile is not installed.
    """
    if isinstance(item, bytes) and item[:4] not in (b"RIFF", b"RIFX"):
        return _decoded_by_soundfile(item)
    if isinstance(item, bytes):
        from scipy.io import wavfile

        if len(item) < _riff_length(item):
            raise ValueError(
                f"{len(item)} bytes are not a whole wav file: its header says {_riff_length(item) + 1} bytes"
            )
        try:
            rate, samples = wavfile.read(io.BytesIO(item))
        except Exception as error:  # the reader of damaged files fails in many ways
            raise ValueError(f"{len(item)} bytes are not a whole wav file: {error}") from error
    else:
        samples, rate = item
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128, int(rate)
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.dtype.itemsize - 1)), int(rate)
    return samples.astype(np.float32), int(rate)


def _riff_length(item: bytes) -> int:
    """Bytes that a RIFF file says it has, less a last one of padding, which may be left out."""
    length = int.from_bytes(item[4:8], "big" if item[:4] == b"RIFX" else "little")
    return 0 if length in (0, 2**32 - 1) else length + 7  # what a recorder writes that could not know it


def _decoded_by_soundfile(item: bytes) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            f"{len(item)} bytes are no wav file; other files of sound are read by soundfile, which is not installed: "
            "pip install 'neuralign[audio]', or give wav files."
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(item), dtype="float32")
    except RuntimeError as error:  # what soundfile's own error is
        raise ValueError(f"{len(item)} bytes are not a whole file of sound: {error}") from error
    return samples, int(rate)
