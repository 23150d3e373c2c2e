"""The pictures of live speech, and those of frames for which nothing new is generated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.mel import TYPICAL_MAXIMUM
from lipstream.audio_features.streaming import SpokenFeatures, SpokenMel
from lipstream.live.avatar import Avatar
from lipstream.live.schedule import Cost
from lipstream.media.picture import RgbPicture
from lipstream.media.reader import Frame
from lipstream.pipeline.generate import FaceGenerator
from lipstream.pipeline.line import composite
from lipstream.pipeline.records import Aligned, Components, Repainted, Window
from lipstream.pipeline.threads import ThreadGroup, grouped
from lipstream.pipeline.track import FADE_FRAMES
from lipstream.settings import SyncSettings

Image = NDArray[np.uint8]

_QUIET_MAXIMUM = -1.0
"""A largest log10 mel energy below this says that nobody has spoken yet."""


@dataclass(frozen=True, eq=False)
class Spoken:
    """A picture of the speech, and the face in it, for frames after it that get none of their own."""

    image: Image
    face: Tensor


class LiveFeatures:
    """Audio features of a session, segment by segment. For one thread.

    Whisper's floor lies below the largest energy of the recording. Of speech that is still being spoken that is not
    known: it is the largest so far, of all segments, and a typical one before anybody has spoken.
    """

    def __init__(self, components: Components, avatar: Avatar, settings: SyncSettings) -> None:
        encoder = components.model.audio_encoder
        self._n_mels = encoder.config.n_mels
        self._features = SpokenFeatures(
            encoder,
            components.networks.audio_encoder.attempts,
            avatar.frame_rate,
            settings.overlap_s(components.model.config.departs),
        )
        self.begin()
        self._maximum = -math.inf

    def begin(self) -> None:
        """Begin a segment."""
        self._mel = SpokenMel(self._n_mels)

    def add(self, samples: NDArray[np.float32], *, is_whole: bool) -> None:
        """Add speech: (n,) mono, 16 kHz. is_whole: the segment ends with it."""
        if len(samples):
            self._mel.add(torch.from_numpy(samples))
        if is_whole and not self._mel.is_ended:
            self._mel.end()
        self._maximum = max(self._maximum, self._mel.maximum)

    def features(self, first: int, n: int) -> list[Tensor]:
        """Return what conditions n frames of the segment, each (tokens, dim). What lies before is forgotten."""
        self._mel.forget(self._features.first_column(first))
        maximum = self._maximum if self._maximum > _QUIET_MAXIMUM else TYPICAL_MAXIMUM
        return self._features.windows(self._mel, first, n, maximum)


class Mouths:
    """Generates and pastes the faces of an avatar. `generate` is for one thread; the others for any."""

    def __init__(self, components: Components, avatar: Avatar, settings: SyncSettings, threads: ThreadGroup) -> None:
        self._components, self._avatar, self._threads = components, avatar, threads
        self._is_filmed = settings.silence == "keep"
        self._generator = FaceGenerator(components, settings, threads)

    def generate(self, frames: list[Frame], audio: list[Tensor], n_faces: int) -> list[Spoken]:
        """Return the pictures of frames that follow one another.

        So many faces, evenly spread, are generated with their audio, and shown until the next one.
        """
        face_of = [index * n_faces // len(frames) for index in range(len(frames))]
        chosen = [face_of.index(face) for face in range(n_faces)]
        with_face = [self._aligned(frames[index]) for index in chosen]
        window = Window(tuple(with_face), tuple(audio[index] for index in chosen))
        made = self._generator.generate(self._generator.encode([window]))
        faces = [one.face for one in made if one.face is not None]
        pasted = [
            Repainted(_own(frame), self._matrix(frame), faces[face_of[index]], self._weight(frame))
            for index, frame in enumerate(frames)
        ]
        for group in grouped(pasted, self._components.geometry.frames):
            self._threads.check()
            composite(self._components.streams.composite, group)
        return [Spoken(one.frame.image, one.face) for one in pasted if one.face is not None]

    def held(self, frame: Frame, face: Tensor) -> Image:
        """Return a frame with a face that was generated for another one."""
        repainted = Repainted(_own(frame), self._matrix(frame), face, self._weight(frame))
        composite(self._components.streams.composite, [repainted])
        return repainted.frame.image

    def idle(self, frame: Frame) -> Image:
        """Return a frame while nobody speaks: the mouth is closed, or as filmed where the settings say so."""
        image = _own(frame).image
        if not self._is_filmed:
            left, top, closed = self._avatar.idle(frame.source_index)
            image[top : top + closed.shape[0], left : left + closed.shape[1]] = closed
        return image

    def beginning(self, frame: Frame, spoken: Spoken, place: int) -> Spoken:
        """Return the picture of a frame shortly after speech began, `place` frames: the mouth does not jump."""
        if place >= FADE_FRAMES:
            return spoken
        return replace(spoken, image=_between(self.idle(frame), spoken.image, (place + 1) / (FADE_FRAMES + 1)))

    def ending(self, frame: Frame, face: Tensor | None, since: int) -> Image:
        """Return the picture of a frame `since` frames after the one with `face`, the first being 0."""
        idle = self.idle(frame)
        if face is None or since >= FADE_FRAMES:
            return idle
        return _between(self.held(frame, face), idle, (since + 1) / (FADE_FRAMES + 1))

    def measured(self, frames: list[Frame], audio: list[Tensor], clock: Callable[[], float]) -> Cost:
        """Return what generating costs, measured on a window and a quarter of one."""
        few = max(1, len(frames) // 4)
        self.generate(frames[:few], audio[:few], few)  # the first call makes what later ones reuse
        times = []
        for n in (few, len(frames)):
            begun_s = clock()
            self.generate(frames[:n], audio[:n], n)
            times.append(clock() - begun_s)
        if len(frames) == few:
            return Cost(0.0, times[1] / few)
        per_face_s = max(0.0, (times[1] - times[0]) / (len(frames) - few))
        return Cost(max(0.0, times[0] - few * per_face_s), per_face_s)

    def _aligned(self, frame: Frame) -> Aligned:
        at = frame.source_index
        return Aligned(frame, self._matrix(frame), self._avatar.crop(at), latents=self._avatar.latents(at))

    def _matrix(self, frame: Frame) -> NDArray[np.float32]:
        return np.asarray(self._avatar.affine_matrices[frame.source_index])

    def _weight(self, frame: Frame) -> float:
        return float(self._avatar.weights[frame.source_index])


def _own(frame: Frame) -> Frame:
    """Return a frame with a picture of its own, RGB."""
    return replace(frame, picture=RgbPicture(np.array(frame.image)))


def _between(one: Image, other: Image, share: float) -> Image:
    mixed = one + np.float32(share) * (other.astype(np.float32) - one)
    return np.asarray(np.rint(mixed), np.uint8)
