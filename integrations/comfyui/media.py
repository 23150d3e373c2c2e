"""Between ComfyUI's VIDEO, AUDIO and IMAGE and what lipstream takes, without holding a clip in memory."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

_BLOCK_SAMPLES = 1 << 16


def video_file(video: Any, folder: Path) -> Path:
    """Return a file with the frames of a VIDEO: its own where it has one and is neither cut nor cropped.

    Else one is written into `folder`: by copying a file in memory, or by ComfyUI's own encoder.
    """
    is_file = hasattr(video, "get_stream_source") and type(video).__name__ != "VideoFromComponents"
    if is_file and _is_whole(video):
        source = video.get_stream_source()
        if not isinstance(source, io.BytesIO):
            return Path(source)
        path = folder / "video"
        path.write_bytes(source.getbuffer())
        return path
    path = folder / "video.mp4"
    video.save_to(str(path))
    return path


def _is_whole(video: Any) -> bool:
    """Return whether a VIDEO shows all of its file: newer ComfyUI cuts and crops without writing a new one."""
    window = getattr(video, "get_active_trim_window", None)
    if window is not None and any(window()):
        return False
    with av.open(video.get_stream_source()) as container:
        stream = container.streams.video[0]
        return {stream.width, stream.height} == set(video.get_dimensions())


def audio_file(audio: dict[str, Any], folder: Path) -> Path:
    """Write an AUDIO, of a batch the first, as a WAV file of float samples and return it."""
    samples = audio["waveform"][0]
    n_channels, n = samples.shape
    rate_hz = int(audio["sample_rate"])
    head = b"RIFF" + struct.pack("<I", 36 + 4 * n * n_channels) + b"WAVEfmt "
    head += struct.pack("<IHHIIHH", 16, 3, n_channels, rate_hz, 4 * n_channels * rate_hz, 4 * n_channels, 32)
    path = folder / "speech.wav"
    with path.open("wb") as file:
        file.write(head + b"data" + struct.pack("<I", 4 * n * n_channels))
        for begin in range(0, n, _BLOCK_SAMPLES):
            block = samples[:, begin : begin + _BLOCK_SAMPLES].float().cpu().numpy()
            file.write(np.ascontiguousarray(block.T, "<f4").tobytes())
    return path


class Pictures:
    """The frames of an IMAGE batch as uint8, converted when they are asked for; may be gone through again."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = images

    def __iter__(self) -> Iterator[np.ndarray]:
        for image in self._images:
            yield (image[..., :3].float() * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()
