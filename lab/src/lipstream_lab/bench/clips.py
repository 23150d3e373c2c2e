"""What a benchmark runs on: the files named, the bundled sample, or a clip made on the spot."""

from __future__ import annotations

import itertools
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lipstream.bundled import sample
from lipstream.errors import SettingsError
from lipstream.media.audio import n_output_frames, probe_speech, read_planar
from lipstream.media.color import ColorTags
from lipstream.media.loop import read_looped
from lipstream.media.reader import probe
from lipstream.media.writer import VideoWriter
from lipstream.settings import FRAME_RATE_HZ, Loop

_SMALLEST_PX, _LARGEST_PX = 160, 8192


@dataclass(frozen=True)
class Inputs:
    """A clip and the speech it is synced to, which lasts `n_frames` frames.

    label: what they are, for the table. folder: for files on the way.
    """

    label: str
    folder: Path
    video: Path
    speech: Path
    n_frames: int


@dataclass(frozen=True)
class Clip:
    """The images of a video file (h, w, 3), uint8 RGB, decoded again each time they are gone through."""

    path: Path
    n_frames: int

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (frame.image for frame in read_looped(self.path, self.n_frames, "trim"))


def prepare(
    folder: Path,
    video: Path | None,
    speech: Path | None,
    *,
    duration_s: float | None,
    synthetic: tuple[int, int] | None,
) -> Inputs:
    """The files named, or the bundled sample's where there is none; cut or made ones are written to `folder`.

    duration_s: of the speech, whole where None. synthetic: width and height in px of a clip to make: the bundled
    portrait, enlarged to fill the frame's shorter side. Raises InputError, and SettingsError for a size out of range.
    """
    speech = speech or sample.SPEECH
    if duration_s is not None:
        speech = _cut(speech, duration_s, folder / "speech.wav")
    n_frames = n_output_frames(probe_speech(speech), FRAME_RATE_HZ)
    if synthetic is not None:
        width, height = synthetic
        if not _SMALLEST_PX <= min(synthetic) <= max(synthetic) <= _LARGEST_PX:
            raise SettingsError(f"synthetic {width}x{height}: must be from {_SMALLEST_PX} to {_LARGEST_PX} px each way")
        video = write_clip(folder / "synthetic.mp4", _synthetic_images(width, height, n_frames), n_frames, crf=10)
        return Inputs(f"synthetic {width}x{height}, {n_frames} frames", folder, video, speech, n_frames)
    video = video or sample.VIDEO
    info = probe(video)
    return Inputs(f"{video.name} {info.width}x{info.height}, {n_frames} frames", folder, video, speech, n_frames)


def untouched(inputs: Inputs, loop: Loop) -> Clip:
    """Write the frames as a run reads them, once, as a run at crf 0 writes: no loss but for the colours' 4:2:0."""
    clip = Clip(inputs.folder / "untouched.mp4", inputs.n_frames)
    if not clip.path.exists():
        images = (frame.image for frame in read_looped(inputs.video, inputs.n_frames, loop))
        write_clip(clip.path, images, inputs.n_frames, crf=0, color=probe(inputs.video).color)
    return clip


def write_clip(
    path: Path, images: Iterator[NDArray[np.uint8]], n_frames: int, *, crf: int, color: ColorTags | None = None
) -> Path:
    """A silent H.264 clip of images (h, w, 3), uint8 RGB, at 25 frames a second; as fast as it goes."""
    first = next(images)
    height, width = first.shape[:2]
    with VideoWriter(
        path, width=width, height=height, color=color, speech=None, n_frames=n_frames, crf=crf, preset="ultrafast"
    ) as writer:
        for image in itertools.chain([first], images):
            writer.write(image)
    return path


def _synthetic_images(width: int, height: int, n_frames: int) -> Iterator[NDArray[np.uint8]]:
    side = min(width, height)
    shade = np.linspace(40, 120, width, dtype=np.uint8)
    backdrop = np.broadcast_to(shade[None, :, None], (height, width, 3))
    left, top = (width - side) // 2, (height - side) // 2
    for frame in read_looped(sample.VIDEO, n_frames, "pingpong"):
        portrait = torch.from_numpy(frame.image).permute(2, 0, 1)[None].float()
        face = F.interpolate(portrait, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)
        image = backdrop.copy()
        image[top : top + side, left : left + side] = face[0].permute(1, 2, 0).to(torch.uint8).numpy()
        yield image


def _cut(speech: Path, duration_s: float, path: Path) -> Path:
    """The first `duration_s` of a recording as 16-bit samples, or all of a shorter one."""
    info = probe_speech(speech)
    left = round(duration_s * info.sample_rate_hz)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(info.channels)
        file.setsampwidth(2)
        file.setframerate(info.sample_rate_hz)
        for block in read_planar(info):
            samples = np.round(block[:, :left].T.clip(-1, 1) * 32767).astype("<i2")
            file.writeframes(samples.tobytes())
            left -= len(samples)
            if left <= 0:
                break
    return path
