"""Make one training clip from a video or a portrait: footage, dubbed footage or an animated still.

Uses the product's reader, detector, tracker, crop and mel, so that training data match inference.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.errors import InputError
from lipstream.evaluate.mouth import FaceMesh, mouth_opening, mouth_width
from lipstream.face.align import crop_face
from lipstream.face.detector import Detector
from lipstream.face.tracking import FaceTrack
from lipstream.media.reader import read_frames
from lipstream_lab.train import augment, data, offset, portraits
from lipstream_lab.train.data import Clip
from lipstream_lab.train.interiors import Drawn, Filmed, Interior
from lipstream_lab.train.speech_samples import SpeechSample
from lipstream_lab.train.videos import Video

logger = logging.getLogger(__name__)

Points = NDArray[np.float64]

_STILL_PX = 256  # stills are warped at this size, then downscaled
_OPEN_MOUTHS, _MIN_OPENING = 4, 0.4  # cut out of a clip: how many at most, and how far open


def n_training_frames(n_frames: int, held_out: float) -> int:
    """Return the number of frames from the start to train on; the rest is held out for evaluation."""
    return int(n_frames * (1 - held_out))


FindDelay = Callable[[Tensor, NDArray[np.float32]], float]
"""Maps the mel of a whole recording and the openings of the first frames to the delay of the sound in ms."""


def footage_clip(
    video: Video,
    resolution: int,
    detector: Detector,
    face_mesh: FaceMesh,
    sound: NDArray[np.float32],
    find_delay: FindDelay,
) -> Clip:
    """Make a clip of the part of a video to train on; it ends at the first frame without a face.

    sound: of the whole video, mono, 16 kHz. find_delay: how late it is. Raises InputError if the first frame shows no
    face.
    """
    track = FaceTrack(resolution)
    crops: list[NDArray[np.uint8]] = []
    random_mouths: list[NDArray[np.uint8]] = []
    shapes: list[tuple[float, float]] = []
    generator = data.seeded(0, video.name)
    total = sum(1 for _ in read_frames(video.path))
    for frame in read_frames(video.path):
        if frame.index >= n_training_frames(total, video.held_out):
            break
        face = detector.detect(frame.image)
        matrix = track.update(frame.source_index, False, None if face is None else face.landmarks)
        if matrix is None:
            logger.warning("%s: frame %d shows no face, the clip ends there", video.path, frame.index)
            break
        crop = crop_face(frame.image, matrix, resolution)
        points = face_mesh.points(data.upscaled(crop))
        crops.append(crop.numpy())
        random_mouths.append(_with_random_mouth(crop, points, generator) if points is not None else crops[0])
        if points is not None:
            shapes.append((mouth_opening(points) / portraits.FULL_GAP, mouth_width(points)))
        else:
            shapes.append(shapes[-1] if shapes else (0.0, 1.0))
    if not crops:
        raise InputError(
            "the first frame shows no usable face", file=video.path, fix="trim the video to where the face is visible"
        )
    opening, width = np.array(shapes, np.float32).T
    width /= np.median(width)
    mel = data.normalised_mel(sound)
    late_ms = find_delay(mel, opening)
    return Clip(
        name=video.name,
        kind="footage",
        person=video.person,
        late_ms=late_ms,
        crops=np.stack(crops),
        mel=data.mel_of_frames(mel, 0, len(crops), round(late_ms / offset.STEP_MS)).numpy(),
        opening=opening,
        width=width,
        extra=np.stack(random_mouths),
    )


def _with_random_mouth(crop: Tensor, points: Points, generator: torch.Generator) -> NDArray[np.uint8]:
    """Render a random mouth, unrelated to the speech. points: mesh of the crop at 256 px."""
    opening, width = augment.uniform(2, 0, 1, generator).tolist()
    image, mouth = _image_and_mouth(crop, points)
    return _bytes(portraits.render(image, mouth, _interior(image, mouth, (), generator), opening, 0.85 + 0.25 * width))


def _image_and_mouth(crop: Tensor, points: Points) -> tuple[Tensor, portraits.Mouth]:
    """Return a crop (3, h, w), 0 to 255, as floats in [0, 1], and its mouth. points: mesh of the crop at 256 px."""
    size = crop.shape[-1]
    return crop.float() / 255, portraits.Mouth.from_mesh(points * (size / 256), size)


def open_mouths(footage: Clip, points: Callable[[NDArray[np.uint8]], Points | None]) -> list[Filmed]:
    """Cut the insides of the widest open mouths out of a clip. points: finds the mesh of a crop at 256 px."""
    found = []
    for index in np.argsort(-footage.opening)[:_OPEN_MOUTHS].tolist():
        crop = torch.from_numpy(footage.crops[index])
        mesh = points(data.upscaled(crop)) if footage.opening[index] >= _MIN_OPENING else None
        if mesh is not None:
            found.append(portraits.cut_interior(*_image_and_mouth(crop, mesh)))
    return [interior for interior in found if interior is not None]


def _interior(image: Tensor, mouth: portraits.Mouth, filmed: Sequence[Filmed], generator: torch.Generator) -> Interior:
    """Draw one of the filmed interiors, or where there is none a drawn one, in the colour of the skin beside the nose.

    image: (3, h, w) in [0, 1].
    """
    skin = portraits.skin_beside_nose(image, mouth)
    if filmed:
        return filmed[data.below(len(filmed), generator)].on(skin)
    return Drawn.random(skin, generator)


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def dubbed_clip(
    name: str,
    footage: Clip,
    points: list[Points | None],
    speech: SpeechSample,
    n_frames: int,
    filmed: Sequence[Filmed],
    generator: torch.Generator,
) -> Clip:
    """Dub part of a clip of footage with part of a speech; both start at random. Frames without points stay unchanged.

    points: meshes of the footage's crops at 256 px. filmed: insides of mouths to draw one from.
    """
    n_frames = min(n_frames, len(footage.crops), len(speech.opening))
    first = data.below(len(footage.crops) - n_frames + 1, generator)
    start = data.below(len(speech.opening) - n_frames + 1, generator)
    opening, width = speech.opening[start : start + n_frames], speech.width[start : start + n_frames]
    crops = []
    interior: Interior | None = None
    for index in range(n_frames):
        crop, mesh = footage.crops[first + index], points[first + index]
        if mesh is not None:
            image, mouth = _image_and_mouth(torch.from_numpy(crop), mesh)
            interior = interior or _interior(image, mouth, filmed, generator)
            relative_width = float(width[index] / footage.width[first + index])
            crop = _bytes(portraits.render(image, mouth, interior, float(opening[index]), relative_width))
        crops.append(crop)
    extra = footage.crops[first : first + n_frames]
    mel = speech.mel_window(start, n_frames).numpy()
    return Clip(name, "dubbed", footage.person, 0.0, np.stack(crops), mel, opening, width, extra)


def still_clip(
    name: str,
    person: str,
    picture: NDArray[np.uint8],
    speech: SpeechSample,
    n_frames: int,
    resolution: int,
    detector: Detector,
    face_mesh: FaceMesh,
    filmed: Sequence[Filmed],
    generator: torch.Generator,
) -> Clip | None:
    """Animate a portrait (h, w, 3) uint8 RGB with part of a speech; None if it shows no face.

    filmed: insides of mouths to draw one from.
    """
    face = detector.detect(picture)
    matrix = None if face is None else FaceTrack(_STILL_PX).update(0, False, face.landmarks)
    if matrix is None:
        return None
    crop = crop_face(picture, matrix, _STILL_PX)
    points = face_mesh.points(crop.permute(1, 2, 0).numpy())
    if points is None:
        return None
    image, mouth = _image_and_mouth(crop, points)
    interior = _interior(image, mouth, filmed, generator)
    n_frames = min(n_frames, len(speech.opening))
    first = data.below(len(speech.opening) - n_frames + 1, generator)
    opening, width = speech.opening[first : first + n_frames], speech.width[first : first + n_frames]
    frames = [image] + [
        portraits.render(image, mouth, interior, float(o), float(w)) for o, w in zip(opening, width, strict=True)
    ]
    small = F.interpolate(torch.stack(frames), size=(resolution, resolution), mode="area")
    pixels = _bytes(small)
    mel = speech.mel_window(first, n_frames).numpy()
    return Clip(name, "still", person, 0.0, pixels[1:], mel, opening, width, pixels[:1])


def varied(clip: Clip, name: str, generator: torch.Generator, strength: float = 0.7) -> Clip:
    """Return the clip with one random warp, mirroring and colour change for all frames."""
    pixels = torch.from_numpy(np.concatenate((clip.crops, clip.extra))).float() / 127.5 - 1
    n, channels, height, width = pixels.shape
    # Warped as one image of 3 n channels, coloured as one n times as high: all frames get the same random change.
    warped = augment.warp(pixels.reshape(1, n * channels, height, width), height, generator, strength=strength)
    tall = warped.view(n, channels, height, width).transpose(0, 1).reshape(1, channels, n * height, width)
    coloured = augment.colour(tall, generator, strength=strength)[0].view(channels, n, height, width).transpose(0, 1)
    result = ((coloured + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    split = len(clip.crops)
    return dataclasses.replace(clip, name=name, crops=result[:split], extra=result[split:])
