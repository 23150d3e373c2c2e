"""The straight line: a clip and a recording go in, a lip-synced clip comes out.

    read -> detect -> track -> align -> windows -> denoise -> composite -> write
    speech -> features -------------------^

Every stage is an iterator over small records, in order, with a bounded number of frames in flight: memory does not
grow with the clip. State that depends on order lives in the one sequential stage `_track`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.accelerate.precision import Ladder
from lipstream.errors import InputError, NoFaceError
from lipstream.face.align import crop_faces
from lipstream.face.composite import paste_faces, resize_face
from lipstream.face.detect import Detector
from lipstream.face.search import Stretch
from lipstream.face.track import FaceTrack
from lipstream.lanes import Lane
from lipstream.latent import conditioning, denoise
from lipstream.latent.conditioning import Conditioning
from lipstream.latent.mask import face_mask
from lipstream.latent.texture import keep_texture
from lipstream.media.audio import SharedSpeech, read_mono
from lipstream.media.looping import read_looped
from lipstream.media.reader import Frame, VideoInfo
from lipstream.media.writer import VideoWriter
from lipstream.models.load import Model
from lipstream.models.whisper import AudioEncoder
from lipstream.runtime.device import FaceGeometry
from lipstream.settings import SyncSettings
from lipstream.speech.features import feature_rows, frame_windows
from lipstream.speech.mel import N_MELS, log_mel_maximum
from lipstream.stages import StageClock, arriving, grouped, ordered_map, prefetch, timed

T = TypeVar("T")
R = TypeVar("R")
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Aligned:
    """A frame, its affine_matrix (2, 3) to the crop and the crop (3, res, res) uint8; None without a face."""

    frame: Frame
    affine_matrix: Matrix | None
    crop: Tensor | None


@dataclass(frozen=True)
class Window:
    """Frames repainted together: `faces` of them have a face, and each of those hears its own audio."""

    frames: tuple[Aligned, ...]
    audio: tuple[Tensor, ...]

    @property
    def faces(self) -> int:
        """Number of frames with a face."""
        return sum(aligned.crop is not None for aligned in self.frames)


@dataclass(frozen=True)
class Encoded:
    """Windows of one U-Net call, their crops (faces of all windows, 3, res, res) in [-1, 1] and what conditions them.

    Both on the device, and None where the windows hold no face.
    """

    windows: list[Window]
    pixels: Tensor | None = None
    conditioning: Conditioning | None = None


@dataclass(frozen=True)
class Repainted:
    """A frame and its new crop: (3, res, res) in [-1, 1], (4, res, res) of `keep_texture`, None without a face.

    The crop lies where it is pasted, see FaceGeometry.
    """

    frame: Frame
    affine_matrix: Matrix | None
    face: Tensor | None


@dataclass
class Counts:
    """How many frames were written with a face repainted, and how many passed through untouched."""

    frames_with_face: int = 0
    frames_without: int = 0


@dataclass(frozen=True)
class Clocks:
    """One clock a stage, in the order of the line."""

    read: StageClock
    detect: StageClock
    align: StageClock
    features: StageClock
    encode: StageClock
    denoise: StageClock
    composite: StageClock
    write: StageClock

    @classmethod
    def start(cls) -> Clocks:
        """All at zero."""
        return cls(**{name: StageClock(name) for name in cls.__dataclass_fields__})

    def in_order(self) -> list[StageClock]:
        """The clocks from the first stage to the last."""
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Lanes:
    """One lane a stage. Made once for all syncs: what CUDA's allocator keeps of a lane's memory only that lane gets."""

    align: Lane
    features: Lane
    encode: Lane
    denoise: Lane
    composite: Lane

    @classmethod
    def to(cls, device: torch.device, geometry: FaceGeometry) -> Lanes:
        """To the networks' device, and to where faces are cut out and pasted back."""
        of_faces = {name: Lane(geometry.device) for name in ("align", "composite")}
        return cls(**of_faces, **{name: Lane(device) for name in ("features", "encode", "denoise")})


@dataclass(frozen=True)
class Ladders:
    """The networks in higher precision, for where a result is not finite."""

    unet: Ladder[denoise.Denoiser]
    vae: Ladder[Any]
    audio_encoder: Ladder[AudioEncoder]


@dataclass(frozen=True)
class Line:
    """What the line is made of. threads: of detection. geometry: of align, composite. batch: windows a U-Net call.

    side_by_side: calls beside one another, each on a core of its own; None: one call at a time, wherever it likes.
    """

    model: Model
    denoiser: denoise.Denoiser
    higher: Ladders
    detector: Detector
    device: torch.device
    threads: int
    geometry: FaceGeometry
    lanes: Lanes
    batch: int
    side_by_side: int | None


def run(
    line: Line,
    video: VideoInfo,
    speech: SharedSpeech,
    writer: VideoWriter,
    n_frames: int,
    settings: SyncSettings,
    clocks: Clocks,
    advance: Callable[[], None],
) -> Counts:
    """Sync `n_frames` frames of `video` (fewer with loop="trim") to `speech` and write them.

    advance: called after each written frame. Raises NoFaceError, and what the stages raise.
    """
    geometry, num_frames = line.geometry, line.model.config.num_frames
    resolution = settings.resolution or line.model.config.resolution

    frames: Iterable[Frame] = timed(read_looped(video.path, n_frames, settings.loop), clocks.read)
    stretches = _stretches(frames, settings.frames_a_search())
    found = ordered_map(lambda item: _detect(line.detector, *item), stretches, line.threads, clocks.detect)
    tracked = _track(found, resolution, settings)
    aligned = by_groups(partial(align, resolution, line.lanes.align), tracked, geometry, clocks.align)

    audio = timed(_hear(line, speech, n_frames), clocks.features)

    windows = _gather(prefetch(aligned, num_frames * line.batch, "prefetch-align"), audio, num_frames)
    mask = face_mask(line.model.config.mask_polygon_xy, line.model.config.mask_size, resolution).to(line.device)
    repainted = _repaint(line, _batches(windows, line.batch), mask, settings, clocks)
    ready = prefetch(repainted, num_frames * line.batch, "prefetch-denoise")
    pictures = arriving(
        by_groups(partial(composite, line.lanes.composite), ready, geometry, clocks.composite), clocks.write
    )

    counts = Counts()
    with closing(pictures):  # whatever happens here ends every thread of the line
        for picture, has_face in pictures:
            with clocks.write.running():
                writer.write(picture)
            counts.frames_with_face += has_face
            counts.frames_without += not has_face
            advance()
    if counts.frames_with_face + counts.frames_without == 0:
        raise InputError(f"{speech.info.path}: too short to hear anything in; give at least 0.04 s of speech")
    if counts.frames_with_face == 0:
        raise _no_face(video.path, counts.frames_without)
    return counts


def _stretches(frames: Iterable[Frame], search_every: int) -> Iterator[tuple[Frame, Stretch]]:
    """Frames with the stretch of `search_every` that each belongs to."""
    for frame in frames:
        if frame.source_index % search_every == 0:
            stretch = Stretch(frame.source_index)
        yield frame, stretch


def _detect(detector: Detector, frame: Frame, stretch: Stretch) -> tuple[Frame, NDArray[np.float64] | None]:
    """A frame's landmarks (3, 2), or None; a repeated frame's are known already."""
    face = None if frame.is_repeat else stretch.find(detector, frame.source_index, frame.image)
    return frame, None if face is None else face.landmarks


def _track(
    found: Iterable[tuple[Frame, NDArray[np.float64] | None]], resolution: int, settings: SyncSettings
) -> Iterator[tuple[Frame, Matrix | None]]:
    """Smooth the alignment over time. The only stage with a memory."""
    track = FaceTrack(resolution)
    for frame, landmarks in found:
        affine_matrix = track.update(frame.source_index, frame.is_repeat, landmarks)
        if affine_matrix is None and settings.no_face == "error":
            raise NoFaceError(f"frame {frame.index}: no usable face; leave out --no-face error to pass it through")
        yield frame, affine_matrix


def by_groups(
    function: Callable[[Sequence[T]], Iterable[R]], items: Iterable[T], geometry: FaceGeometry, clock: StageClock
) -> Iterator[R]:
    """What `function` makes of as many frames at once as are to be worked on together, in order."""
    for results in ordered_map(function, grouped(items, geometry.frames), geometry.threads, clock, frames=len):
        yield from results


def align(resolution: int, lane: Lane, tracked: Sequence[tuple[Frame, Matrix | None]]) -> Iterable[Aligned]:
    """Cut the faces out of their frames."""
    found = [(frame.image, affine_matrix) for frame, affine_matrix in tracked if affine_matrix is not None]
    crops: Iterator[Tensor] = iter(())
    if found:
        with lane.running():
            images, affine_matrices = zip(*found, strict=True)
            crops = iter(crop_faces(images, affine_matrices, resolution, lane))
    return [Aligned(frame, matrix, None if matrix is None else next(crops)) for frame, matrix in tracked]


def _hear(line: Line, speech: SharedSpeech, n_frames: int) -> Iterator[Tensor]:
    """What each frame hears, on the device."""
    lane = line.lanes.features
    above = line.higher.audio_encoder.above
    encoder, maximum = line.model.audio_encoder, speech.info.log_mel_max
    if maximum is None or encoder.config.n_mels != N_MELS:
        maximum = log_mel_maximum(read_mono(speech.info.path), encoder.config.n_mels)
    rows = feature_rows(speech.mono, encoder, above, maximum)
    heard = frame_windows(rows, n_frames)
    while True:
        with lane.running():
            window = next(heard, None)
        if window is None:
            return
        yield window


def _gather(aligned: Iterable[Aligned], audio: Iterable[Tensor], num_frames: int) -> Iterator[Window]:
    """Windows of `num_frames` faces. Frames without one ride along, up to as many again as a window holds."""
    held: list[tuple[Aligned, Tensor]] = []
    for pair in zip(aligned, audio, strict=False):  # a video that is trimmed ends before the speech
        held.append(pair)
        if sum(a.crop is not None for a, _ in held) == num_frames or len(held) == 2 * num_frames:
            yield _window(held)
            held = []
    if held:
        yield _window(held)


def _window(held: Sequence[tuple[Aligned, Tensor]]) -> Window:
    heard = tuple(audio for aligned, audio in held if aligned.crop is not None)
    return Window(tuple(aligned for aligned, _ in held), heard)


def _batches(windows: Iterable[Window], batch: int) -> Iterator[list[Window]]:
    """Up to `batch` windows on end with the same number of faces: a shorter one is run at its own length."""
    for _, alike in itertools.groupby(windows, key=lambda window: window.faces):
        yield from grouped(alike, batch)


def _repaint(
    line: Line, batches: Iterable[list[Window]], mask: Tensor, settings: SyncSettings, clocks: Clocks
) -> Iterator[Repainted]:
    """Give every face of each batch its new mouth, and bring it where it is pasted."""
    size, lane = line.model.latent_size(mask.shape[-1]), line.lanes.denoise
    with lane.running():
        noise = lane.upload(denoise.initial_noise(line.model.config.unet.out_channels, size, size, settings.seed))

    def encode(batch: list[Window]) -> Encoded:
        return _encode_batch(line, batch, mask) if batch[0].faces else Encoded(batch)

    def paint(batch: Encoded) -> list[Repainted]:
        faces = iter(_denoise_batch(line, batch, mask, noise, settings))
        frames = itertools.chain.from_iterable(window.frames for window in batch.windows)
        return [Repainted(a.frame, a.affine_matrix, None if a.crop is None else next(faces)) for a in frames]

    def encode_and_paint(batch: list[Window]) -> list[Repainted]:
        with clocks.encode.running(_n_frames(batch)):
            encoded = encode(batch)
        return paint(encoded)

    if line.device.type == "cuda":  # the next windows are encoded beside
        encoded = ordered_map(encode, batches, 1, clocks.encode, _n_frames)
        painted = ordered_map(paint, encoded, 1, clocks.denoise, lambda batch: _n_frames(batch.windows))
    else:  # the two would fight for a CPU's cores: whole windows are beside one another
        n = clocks.encode.threads = line.side_by_side or 1
        on_one_core = line.side_by_side is not None
        painted = ordered_map(
            encode_and_paint, batches, n, clocks.denoise, _n_frames, in_flight=n, on_one_core=on_one_core
        )
    for frames in painted:
        yield from frames


def _n_frames(batch: Sequence[Window]) -> int:
    return sum(len(window.frames) for window in batch)


@torch.inference_mode()
def _encode_batch(line: Line, batch: list[Window], mask: Tensor) -> Encoded:
    lane, vae, higher = line.lanes.encode, line.model.vae, line.higher.vae.above(*_span(batch))
    while True:
        with lane.running():
            crops = torch.stack([a.crop for window in batch for a in window.frames if a.crop is not None])
            audio = torch.stack([heard for window in batch for heard in window.audio])
            pixels = conditioning.to_pixels(lane.upload(crops))
            seen = conditioning.condition(vae, pixels, mask, audio, batch[0].faces)
            is_finite = lane.download(torch.isfinite(seen.channels).all())
        if is_finite:
            return Encoded(batch, pixels, seen)
        vae = next(higher)


@torch.inference_mode()
def _denoise_batch(line: Line, batch: Encoded, mask: Tensor, noise: Tensor, settings: SyncSettings) -> Sequence[Tensor]:
    """New crops (faces of all windows, 3 or 4, res, res), float32: see `Repainted`.

    Where they are not finite, what is at fault is done again in higher precision: sampling, or else decoding alone.
    """
    if batch.pixels is None or batch.conditioning is None:
        return ()
    lane, config, span = line.lanes.denoise, line.model.config, _span(batch.windows)
    sampling = settings.sampling(config.num_inference_steps, config.guidance_scale)
    denoiser, vae, latents = line.denoiser, line.model.vae, None
    higher_unet, higher_vae = line.higher.unet.above(*span), line.higher.vae.above(*span)
    while True:
        with lane.running():
            if latents is None:
                latents = denoise.sample(denoiser, config.scheduler, noise, batch.conditioning, sampling)
            painted = conditioning.keep_surroundings(conditioning.decode(vae, latents), batch.pixels, mask)
            if (settings.texture or config.texture) == "kept":
                painted = keep_texture(painted, batch.pixels, mask)
            faces = painted if line.geometry.device == line.device else lane.download(painted)
            is_finite = lane.download(torch.isfinite(painted).all())
        if is_finite:
            return faces.unbind()
        if torch.isfinite(latents).all():
            vae = next(higher_vae)
        else:
            denoiser, latents = next(higher_unet), None


def _span(windows: Sequence[Window]) -> tuple[int, int]:
    """The first and the last frame of windows on end."""
    return windows[0].frames[0].frame.index, windows[-1].frames[-1].frame.index


def composite(lane: Lane, repainted: Sequence[Repainted]) -> list[tuple[NDArray[np.uint8], bool]]:
    """The frames with their new mouths, and whether they have one."""
    faces = [(one.frame.image, one.face, one.affine_matrix) for one in repainted if one.face is not None]
    if faces:
        with lane.running():
            # The frames are the line's own (see Frame) and have been cut out of already.
            images, crops, affine_matrices = zip(*faces, strict=True)
            paste_faces(images, resize_face(torch.stack(crops)), affine_matrices, lane)
    return [(one.frame.image, one.face is not None) for one in repainted]


def _no_face(video: Path, n_frames: int) -> NoFaceError:
    return NoFaceError(
        f"{video}: no usable face in the {n_frames} frames looked at; it takes one at least 50 px wide and 80 px high,"
        " turned towards the camera"
    )
