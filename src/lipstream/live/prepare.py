"""Prepare: find, follow, crop and encode the faces of a video once, and generate each with its mouth closed.

The line is that of a run, with silence for speech; what is made on its way is kept as an Avatar.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lipstream.audio_features.mel import SAMPLE_RATE_HZ, TYPICAL_MAXIMUM
from lipstream.face.align import face_size
from lipstream.face.composite import touched
from lipstream.face.detector import MultiFaceDetector
from lipstream.live.avatar import vae_name, weights_of
from lipstream.live.avatar_info import DECIDED, AvatarInfo
from lipstream.live.tensor_file import Column, TensorFile
from lipstream.media.loop import read_looped
from lipstream.media.picture import RgbPicture
from lipstream.media.reader import VideoInfo
from lipstream.pipeline.analyse import FaceTable, analyse, for_video, rate_of
from lipstream.pipeline.clocks import Clocks, timed
from lipstream.pipeline.known import known_faces
from lipstream.pipeline.line import composite, frames_in_flight, generated_faces
from lipstream.pipeline.person import named_person
from lipstream.pipeline.records import Clip, Components, KnownFaces, Repainted
from lipstream.pipeline.threads import FrameBudget, ThreadGroup
from lipstream.settings import SyncSettings

_CHUNK_BYTES = 1 << 20


def prepare(
    components: Components,
    video: VideoInfo,
    output: Path,
    settings: SyncSettings,
    clocks: Clocks,
    threads: ThreadGroup,
    *,
    overwrite: bool,
) -> None:
    """Write the avatar of a video, whole or not at all. Raises what a run does."""
    settings = _decided(components, video, settings)
    table = analyse(components, video, settings, clocks, threads)
    clip = _silent_clip(components, video, settings, table, clocks)
    resolution = settings.resolution or components.model.config.resolution
    known = known_faces(table, clip, resolution, is_given=not isinstance(components.detector, MultiFaceDetector))
    budget = FrameBudget(threads, frames_in_flight(components, video.picture_bytes, settings))
    rows = _Rows(components, known, (video.width, video.height), resolution)
    faces = table.to_bytes()
    columns = rows.columns() | {
        "video": Column("U8", (video.path.stat().st_size,)),
        "faces": Column("U8", (len(faces),)),
    }
    metadata = _info(components, video, settings, table, known).to_metadata()
    with TensorFile(output, columns, metadata, overwrite=overwrite) as file:
        file.write("faces", 0, faces)
        for name, content in rows.whole.items():
            file.write(name, 0, content)
        for start, content in _chunks(video.path):
            threads.check()
            file.write("video", start, content)
        for repainted in generated_faces(components, replace(clip, known=known), clocks, threads, budget):
            with clocks.write.running():
                for name, content in rows.of(repainted):
                    file.write(name, repainted.frame.index, content)
            del repainted
            budget.give_back()
        threads.check()


class _Rows:
    """What an avatar keeps of each frame, as bytes."""

    def __init__(self, components: Components, known: KnownFaces, frame_size: tuple[int, int], resolution: int) -> None:
        self._stream, self._resolution = components.streams.composite, resolution
        latent_size, channels = components.model.latent_size(resolution), components.model.config.unet.out_channels
        self._latents = (2 * channels, latent_size, latent_size)
        found = np.flatnonzero(known.has_face)
        corners, self._size = touched(list(known.affine_matrices[found]), face_size(resolution), frame_size)
        self._corners = np.zeros((len(known), 2), np.int64)
        self._corners[found] = corners
        self.whole = {
            "affine_matrices": known.affine_matrices.tobytes(),
            "weights": known.weights.tobytes(),
            "idle_corners": self._corners.tobytes(),
        }

    def columns(self) -> dict[str, Column]:
        """Return the tensors."""
        n, side = len(self._corners), self._resolution
        width, height = self._size
        return {
            "affine_matrices": Column("F32", (n, 2, 3)),
            "weights": Column("F64", (n,)),
            "idle_corners": Column("I64", (n, 2)),
            "crops": Column("U8", (n, 3, side, side)),
            "latents": Column("F32", (n, *self._latents)),
            "idle": Column("U8", (n, height, width, 3)),
        }

    def of(self, repainted: Repainted) -> Iterator[tuple[str, bytes]]:
        """Yield a frame's rows; nothing of one without a face."""
        if repainted.face is None or repainted.crop is None or repainted.latents is None:
            return
        with self._stream.running():
            # Half precision fits into single: what is read is what was computed.
            kept = {"crops": repainted.crop, "latents": repainted.latents.float()}
            kept = {name: self._stream.download(tensor) for name, tensor in kept.items()}
        for name, tensor in kept.items():
            yield name, tensor.numpy().tobytes()
        frame = replace(repainted.frame, picture=RgbPicture(repainted.frame.image))
        composite(self._stream, [replace(repainted, frame=frame)])
        left, top = self._corners[frame.index]
        width, height = self._size
        yield "idle", frame.image[top : top + height, left : left + width].tobytes()


def _decided(components: Components, video: VideoInfo, settings: SyncSettings) -> SyncSettings:
    """Return the settings with all of `lipstream.live.avatar.DECIDED` decided."""
    config = components.model.config
    return replace(
        settings,
        tracking="people" if settings.follows(config.departs) else "off",
        detect_every=settings.frames_per_detection(),
        frame_rate=str(rate_of(components, video, settings)),
        resolution=settings.resolution or config.resolution,
        no_face="pass",
        silence="model",
        loop="pingpong",
    )


def _silent_clip(
    components: Components, video: VideoInfo, settings: SyncSettings, table: FaceTable, clocks: Clocks
) -> Clip:
    n_frames, rate = len(table), table.frame_rate
    n_seconds = math.ceil(n_frames / rate) + 1
    return Clip(
        name=video.path,
        picture_bytes=video.picture_bytes,
        frames=timed(read_looped(video.path, n_frames, "trim", rate, deinterlace=settings.deinterlace), clocks.read),
        samples=(np.zeros(SAMPLE_RATE_HZ, np.float32) for _ in range(n_seconds)),
        log_mel_max=TYPICAL_MAXIMUM,
        n_frames=n_frames,
        settings=settings,
        pixel_aspect=video.pixel_aspect,
        model_departs=components.model.config.departs,
        person=named_person(for_video(components, video).detector, video, settings, rate),
        frame_rate=rate,
    )


def _info(
    components: Components, video: VideoInfo, settings: SyncSettings, table: FaceTable, known: KnownFaces
) -> AvatarInfo:
    suffix = video.path.suffix.lower()
    return AvatarInfo(
        width=video.width,
        height=video.height,
        frame_rate=table.frame_rate,
        n_frames=len(table),
        model=components.model.config.name,
        weights_sha256=weights_of(components),
        resolution=settings.resolution or components.model.config.resolution,
        vae=vae_name(components),
        video_sha256=table.video_sha256,
        video_suffix=suffix if suffix.removeprefix(".").isalnum() else ".bin",
        loop=longest_shot(known),
        decided={name: getattr(settings, name) for name in DECIDED},
    )


def longest_shot(known: KnownFaces) -> tuple[int, int]:
    """Return the first frame and the one after the last of the longest part of one shot in which all have a face.

    Played to and fro, it never jumps.
    """
    has_face, best, start = known.has_face, (0, 0), 0
    for index in range(len(known) + 1):
        if index < len(known) and has_face[index] and not known.begins[index]:
            continue
        best = max(best, (start, index), key=lambda part: part[1] - part[0])
        start = index if index < len(known) and has_face[index] else index + 1
    return best


def _chunks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield where each part of a file begins, and its bytes."""
    with path.open("rb") as file:
        while content := file.read(_CHUNK_BYTES):
            yield file.tell() - len(content), content
