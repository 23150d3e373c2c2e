"""Make training clips from videos and portraits: footage, dubbed footage and animated stills.

Uses the product's reader, detector, tracker, crop and mel, so that training data match inference. Existing clips are
kept, so an interrupted run resumes.

Neither the kind of face nor the jaw may predict the speech. Stills are therefore animated with synthetic speech and
with that of the videos, and the videos' faces are dubbed with either.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

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
from lipstream.media.audio import read_mono
from lipstream.media.reader import read_frames
from lipstream_lab.train import augment, data, espeak, portraits
from lipstream_lab.train.data import Clip
from lipstream_lab.train.speech_samples import SpeechSample

logger = logging.getLogger(__name__)

Points = NDArray[np.float64]

_STILL_PX = 256  # stills are warped at this size, then downscaled
_MIN_SPEED, _MAX_SPEED = 0.85, 1.2  # of real speech used for dubbing


@dataclass(frozen=True)
class DataSettings:
    """Number and kind of the clips to make.

    footage_variants: colour and shape variations per video. dubs: dubbed clips of `dub_frames` frames per video.
    real_share: share of stills and dubs with the speech of a video rather than a synthetic voice.
    """

    resolution: int = 128
    held_out: float = 0.2
    footage_variants: int = 6
    dubs: int = 16
    dub_frames: int = 72
    still_variants: int = 2
    still_frames: int = 24
    real_share: float = 0.5
    seed: int = 0


def n_training_frames(n_frames: int, held_out: float) -> int:
    """Return the number of frames from the start to train on; the rest is held out for evaluation."""
    return int(n_frames * (1 - held_out))


def footage_clip(
    path: Path,
    resolution: int,
    detector: Detector,
    face_mesh: FaceMesh,
    held_out: float,
    sound: NDArray[np.float32],
    audio_shift_ms: float = 0.0,
) -> Clip:
    """Make a clip of the first part of a video; it ends at the first frame without a face.

    held_out: share of the frames to leave out at the end. sound: of the whole video, mono, 16 kHz. audio_shift_ms:
    delay of the sound against the picture. Raises InputError if the first frame shows no face.
    """
    track = FaceTrack(resolution)
    crops: list[NDArray[np.uint8]] = []
    random_mouths: list[NDArray[np.uint8]] = []
    shapes: list[tuple[float, float]] = []
    generator = _seeded(0, path.stem)
    total = sum(1 for _ in read_frames(path))
    for frame in read_frames(path):
        if frame.index >= n_training_frames(total, held_out):
            break
        face = detector.detect(frame.image)
        matrix = track.update(frame.source_index, False, None if face is None else face.landmarks)
        if matrix is None:
            logger.warning("%s: frame %d shows no face, the clip ends there", path, frame.index)
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
            "the first frame shows no usable face", file=path, fix="trim the video to where the face is visible"
        )
    mel = data.mel_of_frames(data.normalised_mel(sound), 0, len(crops), round(audio_shift_ms / 10))
    opening, width = np.array(shapes, np.float32).T
    width /= np.median(width)
    return Clip(path.stem, "footage", np.stack(crops), mel.numpy(), opening, width, np.stack(random_mouths))


def _with_random_mouth(crop: Tensor, points: Points, generator: torch.Generator) -> NDArray[np.uint8]:
    """Render a random mouth, unrelated to the speech. points: mesh of the crop at 256 px."""
    opening, width = augment.uniform(2, 0, 1, generator).tolist()
    image, mouth = _image_and_mouth(crop, points)
    return _bytes(portraits.render(image, mouth, _interior(image, mouth, generator), opening, 0.85 + 0.25 * width))


def _image_and_mouth(crop: Tensor, points: Points) -> tuple[Tensor, portraits.Mouth]:
    """Return a crop (3, h, w), 0 to 255, as floats in [0, 1], and its mouth. points: mesh of the crop at 256 px."""
    size = crop.shape[-1]
    return crop.float() / 255, portraits.Mouth.from_mesh(points * (size / 256), size)


def _interior(image: Tensor, mouth: portraits.Mouth, generator: torch.Generator) -> portraits.Interior:
    """Draw a mouth interior that matches the skin beside the nose. image: (3, h, w) in [0, 1]."""
    reach = image.shape[-1] // 25
    y, x = int(mouth.nose_base), int(mouth.left)
    skin = image[:, y - reach : y + reach, max(x - 2 * reach, 0) : x + reach // 2]
    return portraits.Interior.random(skin.mean((1, 2)), generator)


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def dubbed_clip(
    name: str,
    footage: Clip,
    points: list[Points | None],
    speech: SpeechSample,
    n_frames: int,
    generator: torch.Generator,
) -> Clip:
    """Dub part of a clip of footage with part of a speech; both start at random. Frames without points stay unchanged.

    points: meshes of the footage's crops at 256 px.
    """
    n_frames = min(n_frames, len(footage.crops), len(speech.opening))
    first = data.below(len(footage.crops) - n_frames + 1, generator)
    start = data.below(len(speech.opening) - n_frames + 1, generator)
    opening, width = speech.opening[start : start + n_frames], speech.width[start : start + n_frames]
    crops = []
    interior: portraits.Interior | None = None
    for index in range(n_frames):
        crop, mesh = footage.crops[first + index], points[first + index]
        if mesh is not None:
            image, mouth = _image_and_mouth(torch.from_numpy(crop), mesh)
            interior = interior or _interior(image, mouth, generator)
            relative_width = float(width[index] / footage.width[first + index])
            crop = _bytes(portraits.render(image, mouth, interior, float(opening[index]), relative_width))
        crops.append(crop)
    extra = footage.crops[first : first + n_frames]
    return Clip(name, "dubbed", np.stack(crops), speech.mel_window(start, n_frames).numpy(), opening, width, extra)


def still_clip(
    name: str,
    picture: NDArray[np.uint8],
    speech: SpeechSample,
    n_frames: int,
    resolution: int,
    detector: Detector,
    face_mesh: FaceMesh,
    generator: torch.Generator,
) -> Clip | None:
    """Animate a portrait (h, w, 3) uint8 RGB with part of a speech; None if it shows no face."""
    face = detector.detect(picture)
    matrix = None if face is None else FaceTrack(_STILL_PX).update(0, False, face.landmarks)
    if matrix is None:
        return None
    crop = crop_face(picture, matrix, _STILL_PX)
    points = face_mesh.points(crop.permute(1, 2, 0).numpy())
    if points is None:
        return None
    image, mouth = _image_and_mouth(crop, points)
    interior = _interior(image, mouth, generator)
    n_frames = min(n_frames, len(speech.opening))
    first = data.below(len(speech.opening) - n_frames + 1, generator)
    opening, width = speech.opening[first : first + n_frames], speech.width[first : first + n_frames]
    frames = [image] + [
        portraits.render(image, mouth, interior, float(o), float(w)) for o, w in zip(opening, width, strict=True)
    ]
    small = F.interpolate(torch.stack(frames), size=(resolution, resolution), mode="area")
    pixels = _bytes(small)
    return Clip(name, "still", pixels[1:], speech.mel_window(first, n_frames).numpy(), opening, width, pixels[:1])


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
    return Clip(name, clip.kind, result[:split], clip.mel, clip.opening, clip.width, result[split:])


class Maker:
    """Fills a folder with clips. A clip depends on its name and the seed, not on the order of creation."""

    def __init__(
        self,
        folder: Path,
        settings: DataSettings,
        detector: Detector,
        audio_shifts_ms: dict[str, float],
        report: Callable[[str], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings, self._detector, self._report = folder, settings, detector, report
        self._shifts_ms = audio_shifts_ms
        self._mesh = FaceMesh()
        self._real: list[SpeechSample] = []
        self._speaker: espeak.Speaker | None = None

    def close(self) -> None:
        """Close the face mesh."""
        self._mesh.close()

    def add_footage(self, path: Path) -> None:
        """Add a video's face and its variants; stills and dubs added later may use its speech."""
        first = self._folder / f"{path.stem}-0.npz"
        shift_ms = self._shifts_ms.get(path.stem, 0.0)
        sound = np.concatenate(list(read_mono(path)))
        if not first.exists():
            made = footage_clip(
                path, self._settings.resolution, self._detector, self._mesh, self._settings.held_out, sound, shift_ms
            )
            made.save(first)
        clip = Clip.load(first)
        self._real.append(SpeechSample.real(sound, clip, shift_ms))
        for variant in range(1, self._settings.footage_variants):
            target = self._folder / f"{path.stem}-{variant}.npz"
            if not target.exists():
                varied(clip, target.stem, _seeded(self._settings.seed, target.stem)).save(target)
        self._report(path.stem)

    def add_dubs(self, path: Path) -> None:
        """Add dubbed clips of a video that was added before."""
        targets = [self._folder / f"{path.stem}-d{number}.npz" for number in range(self._settings.dubs)]
        missing = [target for target in targets if not target.exists()]
        if not missing:
            return
        clip = Clip.load(self._folder / f"{path.stem}-0.npz")
        points = [self._mesh.points(data.upscaled(torch.from_numpy(crop))) for crop in clip.crops]
        for target in missing:
            generator = _seeded(self._settings.seed, target.stem)
            speech = self._draw_speech(generator)
            made = dubbed_clip(target.stem, clip, points, speech, self._settings.dub_frames, generator)
            varied(made, target.stem, generator).save(target)
        self._report(f"{path.stem}, dubbed")

    def add_portrait(self, path: Path) -> None:
        """Add animated clips of a portrait; one without a usable face is skipped with a warning."""
        for variant in range(self._settings.still_variants):
            target = self._folder / f"{path.stem}-s{variant}.npz"
            if target.exists():
                continue
            generator = _seeded(self._settings.seed, target.stem)
            speech = self._draw_speech(generator)
            frames, resolution = self._settings.still_frames, self._settings.resolution
            picture = data.read_picture(path)
            made = still_clip(target.stem, picture, speech, frames, resolution, self._detector, self._mesh, generator)
            if made is None:
                logger.warning("%s: no usable face, skipped", path)
                return
            varied(made, target.stem, generator).save(target)
        self._report(path.stem)

    def _draw_speech(self, generator: torch.Generator) -> SpeechSample:
        draw = np.random.default_rng(data.below(2**31, generator))
        if self._real and draw.random() < self._settings.real_share:
            chosen = self._real[int(draw.integers(len(self._real)))]
            return chosen.faster(float(draw.uniform(_MIN_SPEED, _MAX_SPEED)))
        self._speaker = self._speaker or espeak.Speaker()
        return SpeechSample.synthetic(self._speaker, draw)


def make(
    videos: Iterable[Path],
    pictures: Iterable[Path],
    folder: Path,
    settings: DataSettings,
    detector: Detector,
    audio_shifts_ms: dict[str, float] | None = None,
    report: Callable[[str], None] | None = None,
) -> int:
    """Fill `folder` with clips and return their number. Existing clips are kept.

    audio_shifts_ms: delay of the sound against the picture, by the video's file name without suffix.
    """
    maker = Maker(folder, settings, detector, audio_shifts_ms or {}, report or (lambda _: None))
    videos = list(videos)
    for path in videos:
        maker.add_footage(path)
    for path in videos:
        maker.add_dubs(path)
    for path in pictures:
        maker.add_portrait(path)
    maker.close()
    return len(data.clip_paths(folder))


def _seeded(seed: int, name: str) -> torch.Generator:
    """Return a generator that depends only on the seed and the clip's name."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
