"""A clip whose images and samples are in memory, and the results that go back there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.audio_features.mel import log_mel_maximum
from lipstream.errors import InputError
from lipstream.media.memory import Images, Speech
from lipstream.pipeline.clocks import Clocks, timed
from lipstream.pipeline.first_face import no_face_in
from lipstream.pipeline.line import crops, pictures
from lipstream.pipeline.pauses import with_pauses
from lipstream.pipeline.records import Clip, Components, Counts, Repainted
from lipstream.pipeline.threads import ThreadGroup
from lipstream.results import GeneratedCrop
from lipstream.settings import SyncSettings

_NAME = "images"


def memory_clip(
    components: Components, images: Iterable[Any], speech: Speech, settings: SyncSettings, clocks: Clocks
) -> Clip:
    """Return the clip of images and speech; see `Images`. The first image is taken at once, the others as needed."""
    source = Images(images, speech.n_frames, settings.loop)
    clip = Clip(
        name=_NAME,
        picture_bytes=source.width * source.height * 3,
        frames=timed(source.frames(), clocks.read),
        samples=[speech.samples],
        log_mel_max=log_mel_maximum([speech.samples], components.model.config.audio_encoder.n_mels),
        n_frames=speech.n_frames,
        settings=settings,
        model_departs=components.model.config.departs,
    )
    return with_pauses(clip, lambda: [speech.samples])


def pasted_pictures(
    components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of the output. Raises NoFaceError after the last one if none has a face."""
    counts = Counts()
    for frame, has_face in pictures(components, clip, clocks, threads):
        counts.add(has_face)
        yield frame.image
        del frame
    _check(counts, clip)


def generated_crops(
    components: Components, clip: Clip, clocks: Clocks, threads: ThreadGroup
) -> Iterator[GeneratedCrop]:
    """Yield the generated faces of the output's frames. Raises NoFaceError after the last one if none has a face."""
    counts = Counts()
    for repainted in crops(components, clip, clocks, threads):
        counts.add(repainted.face is not None)
        yield _to_generated_crop(components, repainted)
        del repainted
    _check(counts, clip)


def _to_generated_crop(components: Components, repainted: Repainted) -> GeneratedCrop:
    """Return a generated crop as a picture; it is rounded down as a pasted one is (published behaviour)."""
    frame, image, stream = repainted.frame, None, components.streams.composite
    if repainted.face is not None:
        with stream.running():
            levels = repainted.face.div(2).add(0.5).clamp(0, 1).mul(255).permute(1, 2, 0).byte().contiguous()
            image = stream.download(levels).numpy()
    return GeneratedCrop(frame.index, frame.source_index, image, repainted.affine_matrix)


def _check(counts: Counts, clip: Clip) -> None:
    if counts.frames == 0:
        raise InputError("the speech is too short to be synced", fix="give at least 0.04 s of speech")
    if counts.frames_with_face == 0 and clip.kept is None:
        raise no_face_in(_NAME, counts.frames)
