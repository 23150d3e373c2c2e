"""Small clips and recordings, a detector that knows where the face is, and pictures compared."""

from __future__ import annotations

import threading
import time
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from lipstream import SyncSettings
from lipstream.encoding_settings import EncodingSettings
from lipstream.face.registry import Face
from lipstream.media.writer import VideoWriter
from lipstream.models.load import Model

FAST = SyncSettings(num_inference_steps=1, guidance_scale=1.0, crf=0)
LONG = replace(FAST, num_inference_steps=50)


class KnownFace:
    """A detector that knows where the face is, and sees none in a dark frame."""

    name = "known"

    def __init__(self, landmarks: NDArray[np.float64]) -> None:
        self.landmarks = landmarks
        self.calls = 0

    def detect(self, image: NDArray[np.uint8]) -> Face | None:
        self.calls += 1
        if image.mean() < 20:
            return None
        return Face((0.0, 0.0, 100.0, 100.0), 1.0, self.landmarks)

    def detect_near(self, image: NDArray[np.uint8], held: Face) -> Face | None:
        return Face(held.box, held.score, held.landmarks + 1) if image.mean() >= 20 else None

    def close(self) -> None:
        pass


def write_clip(path: Path, images: list[NDArray[np.uint8]]) -> Path:
    height, width = images[0].shape[:2]
    size = {"width": width, "height": height, "n_frames": len(images)}
    with VideoWriter(path, **size, color=None, speech=None, encoding=EncodingSettings(crf=10)) as writer:
        for image in images:
            writer.write(image)
    return path


def write_speech(path: Path, duration_s: float, sample_rate_hz: int = 22050, channels: int = 1) -> Path:
    n_samples = round(duration_s * sample_rate_hz)
    noise = np.random.default_rng(0).normal(0, 3000, (n_samples, channels)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(noise.tobytes())
    return path


def slow_steps(model: Model, monkeypatch: pytest.MonkeyPatch, step_s: float) -> threading.Event:
    """Make each step of the model take so long; the event is set once one has begun."""
    step, begun = model.unet.step, threading.Event()

    def slow(*args: Any) -> Any:
        begun.set()
        time.sleep(step_s)
        return step(*args)

    monkeypatch.setattr(model.unet, "step", slow)
    return begun


def read_images(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def psnr_db(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(np.square(one.astype(float) - other).mean(), 1e-9)))
