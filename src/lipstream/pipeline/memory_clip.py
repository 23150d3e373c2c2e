"""A clip whose images and samples are in memory, and the crops that go back there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.mel import log_mel_maximum
from lipstream.errors import InputError
from lipstream.media.audio import mono_of
from lipstream.media.loop import loop_images
from lipstream.pipeline.records import Clip, Components, Repainted
from lipstream.results import GeneratedCrop
from lipstream.settings import FRAME_RATE_HZ, SyncSettings


def memory_clip(
    components: Components,
    images: Iterable[NDArray[np.uint8]],
    samples: NDArray[np.floating[Any]],
    sample_rate_hz: int,
    settings: SyncSettings,
) -> Clip:
    """Return the clip of images (height, width, 3) uint8 RGB and samples (n,) or (channels, n); see LipSync.frames.

    The first image is taken at once, the others when the run asks for them. Raises InputError, SettingsError.
    """
    if sample_rate_hz <= 0:
        raise InputError(f"sample_rate_hz = {sample_rate_hz} is not a sample rate", fix="give samples per second")
    n_mels = components.model.audio_encoder.config.n_mels
    maximum = log_mel_maximum(mono_of(samples, sample_rate_hz), n_mels)
    n_frames = max(1, round(FRAME_RATE_HZ * np.shape(samples)[-1] / sample_rate_hz))
    frames = loop_images(images, n_frames, settings.loop)
    first = next(frames)
    height, width = first.image.shape[:2]
    return Clip(
        name="images",
        width=width,
        height=height,
        frames=itertools.chain([first], frames),
        samples=mono_of(samples, sample_rate_hz),
        log_mel_max=maximum,
        n_frames=n_frames,
        settings=settings,
    )


def to_generated_crop(repainted: Repainted) -> GeneratedCrop:
    """Return a generated crop as a picture; it is rounded down as a pasted one is (published behaviour)."""
    if repainted.face is None:
        return GeneratedCrop(repainted.frame.index, None, None)
    image = repainted.face.div(2).add(0.5).clamp(0, 1).mul(255).permute(1, 2, 0).byte().cpu().numpy()
    return GeneratedCrop(repainted.frame.index, image, repainted.affine_matrix)
