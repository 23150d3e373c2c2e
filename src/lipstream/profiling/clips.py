"""Inputs of a measurement: given files, the bundled sample, or a synthetic clip."""

from __future__ import annotations

import itertools
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lipstream.bundled import sample
from lipstream.encoding_settings import EncodingSettings
from lipstream.errors import SettingsError
from lipstream.media.audio import n_output_frames, probe_speech, read_planar
from lipstream.media.color import ColorTags
from lipstream.media.loop import read_looped
from lipstream.media.reader import probe
from lipstream.media.writer import VideoWriter
from lipstream.settings import FRAME_RATE_HZ, Loop, SyncSettings

_SMALLEST_PX, _LARGEST_PX = 160, 8192


@dataclass(frozen=True)
class Inputs:
    """A video and a recording that lasts `n_frames` frames.

    label: description for the table. folder: for temporary files.
    """

    label: str
    folder: Path
    video: Path
    speech: Path
    n_frames: int


@dataclass(frozen=True)
class Clip:
    """The images (h, w, 3) uint8 RGB of a video file, decoded again on each iteration."""

    path: Path
    n_frames: int

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (frame.image for frame in read_looped(self.path, self.n_frames, "trim"))


def check_run_lengths(duration_s: float | None, repeats: int, settings: Iterable[SyncSettings]) -> None:
    """Check the options that every measurement on a clip has. Raises SettingsError."""
    if duration_s is not None and duration_s * FRAME_RATE_HZ < 1:
        raise SettingsError(
            f"seconds = {duration_s}: shorter than one frame",
            fix=f"use at least {1 / FRAME_RATE_HZ}",
            setting="seconds",
        )
    if repeats < 1:
        raise SettingsError(f"repeats = {repeats}: nothing to measure", fix="use at least 1", setting="repeats")
    if any(sync.loop == "trim" for sync in settings):
        raise SettingsError(
            "loop = 'trim': the number of frames must be that of the speech", fix="use pingpong or hold", setting="loop"
        )


def prepare(
    folder: Path,
    video: Path | None,
    speech: Path | None,
    *,
    duration_s: float | None,
    synthetic: tuple[int, int] | None,
) -> Inputs:
    """Return the inputs: the given files or the bundled sample, trimmed or generated files being written to `folder`.

    duration_s: use this much of the speech; None uses all. synthetic: (width, height) in pixels of a clip to generate
    from the bundled portrait, scaled to the frame's shorter side. Raises InputError, and SettingsError for a size out
    of range.
    """
    speech = speech or sample.SPEECH
    if duration_s is not None:
        speech = _cut(speech, duration_s, folder / "speech.wav")
    n_frames = n_output_frames(probe_speech(speech), FRAME_RATE_HZ)
    if synthetic is not None:
        width, height = synthetic
        if not _SMALLEST_PX <= min(synthetic) <= max(synthetic) <= _LARGEST_PX:
            raise SettingsError(
                f"synthetic = {width}x{height}: out of range",
                fix=f"use {_SMALLEST_PX} to {_LARGEST_PX} px for each side",
            )
        video = write_clip(folder / "synthetic.mp4", _synthetic_images(width, height, n_frames), n_frames, crf=10)
        return Inputs(f"synthetic {width}x{height}, {n_frames} frames", folder, video, speech, n_frames)
    video = video or sample.VIDEO
    info = probe(video)
    return Inputs(f"{video.name} {info.width}x{info.height}, {n_frames} frames", folder, video, speech, n_frames)


def untouched(inputs: Inputs, loop: Loop) -> Clip:
    """Return the source frames of a run as a lossless clip (but for 4:2:0 chroma), written on the first call."""
    clip = Clip(inputs.folder / "untouched.mp4", inputs.n_frames)
    if not clip.path.exists():
        images = (frame.image for frame in read_looped(inputs.video, inputs.n_frames, loop))
        write_clip(clip.path, images, inputs.n_frames, crf=0, color=probe(inputs.video).color)
    return clip


def write_clip(
    path: Path, images: Iterator[NDArray[np.uint8]], n_frames: int, *, crf: int, color: ColorTags | None = None
) -> Path:
    """Write images (h, w, 3) uint8 RGB as a silent H.264 clip at 25 frames per second, with the fastest preset."""
    first = next(images)
    height, width = first.shape[:2]
    encoding = EncodingSettings(crf=crf, x264_preset="ultrafast")
    with VideoWriter(
        path, width=width, height=height, color=color, speech=None, n_frames=n_frames, encoding=encoding
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
