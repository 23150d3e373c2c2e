"""The straight components: a clip and a recording go in, a lip-synced clip comes out.

    read -> detect -> track -> align -> windows -> denoise -> composite -> write
    speech -> features -------------------^

Every stage is an iterator over small records, in order, in threads of its own. One budget bounds the frames in flight
in the whole run, so memory does not grow with the clip or with the threads. State that depends on order lives in the
one sequential stage `tracked`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.features import feature_rows, first_block_of, first_row_of, frame_windows
from lipstream.audio_features.mel import N_MELS, log_mel_maximum
from lipstream.errors import InputError
from lipstream.face.align import crop_faces
from lipstream.face.composite import paste_faces, resize_face
from lipstream.face.detector import MultiFaceDetector
from lipstream.media.audio import SpeechInfo, read_mono
from lipstream.media.reader import Frame, VideoInfo
from lipstream.pipeline.clocks import Clocks, StageClock, timed
from lipstream.pipeline.detect import seen_faces
from lipstream.pipeline.first_face import find_first_face
from lipstream.pipeline.generate import FaceGenerator
from lipstream.pipeline.records import Aligned, Clip, Components, KnownFaces, PreparedFaces, Repainted
from lipstream.pipeline.threads import FrameBudget, ThreadGroup, grouped
from lipstream.pipeline.track import LOOKAHEAD, Tracked, tracked
from lipstream.pipeline.windows import FRAMES_PER_FACE, batches, gather
from lipstream.runtime.device import FaceGeometry
from lipstream.runtime.device_stream import DeviceStream
from lipstream.settings import SyncSettings

T = TypeVar("T")
R = TypeVar("R")

_FLOAT_BYTES = 4


def search_first_face(
    components: Components,
    video: VideoInfo,
    n_frames: int,
    settings: SyncSettings,
    frame_rate: Fraction,
    clocks: Clocks,
    threads: ThreadGroup,
) -> int:
    """Return the index of the first of `n_frames` frames with a face. Raises NoFaceError, see `find_first_face`."""
    return find_first_face(
        components.detector,
        video,
        n_frames,
        settings,
        clocks.detect,
        threads,
        frame_rate=frame_rate,
        n_threads=components.threads,
        frames_in_flight=frames_in_flight(components, video.picture_bytes, settings),
    )


def recording_maximum(components: Components, speech: SpeechInfo, threads: ThreadGroup) -> float:
    """Return the log-mel maximum that the audio encoder's floor needs.

    It is what probing found, unless the encoder has another number of mel bands: then the speech is read once more.
    """
    n_mels = components.model.config.audio_encoder.n_mels
    if speech.log_mel_max is not None and n_mels == N_MELS:
        return speech.log_mel_max
    return log_mel_maximum(checked(read_mono(speech), threads), n_mels)


def frames_in_flight(components: Components, picture_bytes: int, settings: SyncSettings) -> int:
    """Return how many frames a run may hold: as its memory allows, but as many as one call's windows need to fill up.

    Fewer would wait for one another for ever. A frame counts with its crop before and after.
    """
    resolution = settings.resolution or components.model.config.resolution
    crops = resolution * resolution * (3 + 4 * _FLOAT_BYTES)
    allowed = components.frame_memory_bytes // (picture_bytes + crops)
    incomplete_groups = 2 * (components.geometry.frames - 1)
    lookahead = LOOKAHEAD if settings.follows(components.model.config.departs) else 0
    return max(
        allowed,
        FRAMES_PER_FACE * components.model.config.num_frames * components.batch + incomplete_groups + 1 + lookahead,
    )


def pictures(components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup) -> Iterator[tuple[Frame, bool]]:
    """Yield the output's frames, and whether they have a generated face; each is released when the next is taken."""
    budget = _budget(components, clip, threads)
    geometry = components.geometry
    ready = generated_faces(components, clip, clocks, threads, budget)
    pasted = by_groups(partial(composite, components.streams.composite), ready, geometry, clocks.composite, threads)
    for frame, has_face in pasted:
        yield frame, has_face
        del frame
        budget.give_back()


def crops(components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup) -> Iterator[Repainted]:
    """Yield the generated crops of the output's frames, not pasted back. One is released when the next is taken."""
    budget = _budget(components, clip, threads)
    for repainted in generated_faces(components, clip, clocks, threads, budget):
        yield repainted
        del repainted
        budget.give_back()


def _budget(components: Components, clip: Clip, threads: ThreadGroup) -> FrameBudget:
    return FrameBudget(threads, frames_in_flight(components, clip.picture_bytes, clip.settings))


def generated_faces(
    components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup, budget: FrameBudget
) -> Iterator[Repainted]:
    """Yield the frames of the output with their generated crops. Each is to be given back to `budget`."""
    geometry, num_frames, settings = components.geometry, components.model.config.num_frames, clip.settings
    resolution = settings.resolution or components.model.config.resolution

    frames = budget.spend(clip.frames)
    if clip.known is not None:
        faces = _known(frames, clip, clip.known, clocks.detect)
    else:
        found = seen_faces(components, frames, settings, clip.model_departs, clip.first_face, clocks.detect, threads)
        faces = tracked(found, resolution, clip, is_given=not isinstance(components.detector, MultiFaceDetector))
    if clip.prepared is not None:
        crop: Callable[[Sequence[Tracked]], Iterable[Aligned]] = partial(take_prepared, clip.prepared)
    else:
        crop = partial(align, resolution, components.streams.align)
    aligned = by_groups(crop, faces, geometry, clocks.align, threads)

    audio = timed(_audio_features(components, clip, threads), clocks.features)

    windows = gather(aligned, audio, num_frames)
    generator = FaceGenerator(components, settings, threads)
    return generator.frames(batches(windows, components.batch), clocks)


def _known(frames: Iterable[Frame], clip: Clip, known: KnownFaces, clock: StageClock) -> Iterator[Tracked]:
    """Yield frames with their alignment, which is known."""
    for frame in frames:
        if frame.index >= len(known):
            fix = "leave the file unchanged during the run"
            raise InputError("it has more frames than when its faces were searched for", file=clip.name, fix=fix)
        affine_matrix = known.affine_matrices[frame.index]
        clock.count(1)
        yield Tracked(
            frame,
            None if np.isnan(affine_matrix).any() else affine_matrix,
            begins=bool(known.begins[frame.index]),
            weight=float(known.weights[frame.index]),
        )
        del frame  # waiting for the next one must not keep this one in memory


def by_groups(
    function: Callable[[Sequence[T]], Iterable[R]],
    items: Iterable[T],
    geometry: FaceGeometry,
    clock: StageClock,
    threads: ThreadGroup,
) -> Iterator[R]:
    """Yield what `function` makes of groups of frames, as many as the device takes together, in order."""
    groups = grouped(items, geometry.frames)
    results = threads.ordered_map(function, groups, geometry.threads, clock, frames=len)
    return itertools.chain.from_iterable(results)


def align(resolution: int, stream: DeviceStream, faces: Sequence[Tracked]) -> Iterable[Aligned]:
    """Crop the faces of frames."""
    found = [(one.frame.picture, one.affine_matrix) for one in faces if one.affine_matrix is not None]
    crops: Iterator[Tensor] = iter(())
    if found:
        with stream.running():
            pictures, affine_matrices = zip(*found, strict=True)
            crops = iter(crop_faces(pictures, affine_matrices, resolution, stream))
    return [
        Aligned(
            one.frame,
            one.affine_matrix,
            None if one.affine_matrix is None else next(crops),
            begins=one.begins,
            weight=one.weight,
        )
        for one in faces
    ]


def take_prepared(prepared: PreparedFaces, faces: Sequence[Tracked]) -> Iterable[Aligned]:
    """Return the faces of frames with crops and latents that are known."""
    for one in faces:
        at, matrix = one.frame.source_index, one.affine_matrix
        crop, latents = (None, None) if matrix is None else (prepared.crop(at), prepared.latents(at))
        yield Aligned(one.frame, matrix, crop, begins=one.begins, weight=one.weight, latents=latents)


def _audio_features(components: Components, clip: Clip, threads: ThreadGroup) -> Iterator[Tensor]:
    """Yield the audio features of each frame, on the device."""
    stream, model = components.streams.features, components.model
    config = model.audio_encoder.config
    overlap_s = clip.settings.overlap_s(clip.model_departs)
    first_block = first_block_of(clip.first_frame, config, clip.frame_rate, overlap_s)
    rows = feature_rows(
        lambda: checked(clip.samples, threads),
        model.audio_encoder,
        components.networks.audio_encoder.attempts,
        clip.log_mel_max,
        first_block,
        overlap_s,
    )
    first_row = first_row_of(first_block, config, overlap_s)
    features = frame_windows(rows, clip.n_frames, clip.first_frame, first_row, frame_rate=clip.frame_rate)
    while True:
        with stream.running():
            window = list(itertools.islice(features, model.config.num_frames))
        if not window:
            return
        yield from window


def checked(blocks: Iterable[NDArray[np.float32]], threads: ThreadGroup) -> Iterator[NDArray[np.float32]]:
    """Yield the blocks while the run is not stopped: an hour of speech may be read at once."""
    for block in blocks:
        threads.check()
        yield block


def composite(stream: DeviceStream, repainted: Sequence[Repainted]) -> list[tuple[Frame, bool]]:
    """Return the frames with their generated faces, and whether they have one."""
    faces = [one for one in repainted if one.face is not None]
    if faces:
        with stream.running():
            # The pictures are the run's own (see Frame) and have been cropped already.
            crops = torch.stack([one.face for one in faces if one.face is not None])
            matrices = [one.affine_matrix for one in faces if one.affine_matrix is not None]
            weights = [one.weight for one in faces]
            paste_faces([one.frame.picture for one in faces], resize_face(crops), matrices, stream, weights)
    return [(one.frame, one.face is not None) for one in repainted]
