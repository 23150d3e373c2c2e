"""Makes training clips of videos and portraits: faces as they were filmed, dubbed faces, stills that talk.

Made with the product's own reader, detector, tracker, crop and mel, so that training sees what inference sees. A
finished clip is never made again: the cache is resumable.

The face must not give away the kind of voice, nor the jaw what is said. So stills say synthetic speech and the
videos' own, and the videos' faces are dubbed with either.
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

_STILL_SIZE = 256  # stills are warped at this size and then made smaller
_SLOWEST, _FASTEST = 0.85, 1.2  # of real speech said by others


@dataclass(frozen=True)
class DataSettings:
    """What is made of a folder of videos and a folder of portraits.

    footage_variants: of each video's face, in other colours and shapes. dubs: clips of `dub_frames` frames of each
    video's face saying something else. real_share: of the stills and dubs, those that say what a video says.
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
    """How many frames from the beginning are trained on; the rest is kept for measuring."""
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
    """The first part of a video with its own sound; frames without a face end the clip.

    held_out: share of the frames at the end that is left out. sound: of the whole video, mono, 16 kHz.
    audio_shift_ms: how much later than the picture it is in the file (negative: earlier).
    """
    track = FaceTrack(resolution)
    crops: list[NDArray[np.uint8]] = []
    redrawn: list[NDArray[np.uint8]] = []
    shapes: list[tuple[float, float]] = []
    generator = _seeded(0, path.stem)
    total = sum(1 for _ in read_frames(path))
    for frame in read_frames(path):
        if frame.index >= n_training_frames(total, held_out):
            break
        face = detector.detect(frame.image)
        matrix = track.update(frame.source_index, False, None if face is None else face.landmarks)
        if matrix is None:
            logger.warning("%s: frame %d shows no face; the clip ends there", path, frame.index)
            break
        crop = crop_face(frame.image, matrix, resolution)
        points = face_mesh.points(data.upscaled(crop))
        crops.append(crop.numpy())
        redrawn.append(_redrawn(crop, points, generator) if points is not None else crops[0])
        if points is not None:
            shapes.append((mouth_opening(points) / portraits.FULL_GAP, mouth_width(points)))
        else:
            shapes.append(shapes[-1] if shapes else (0.0, 1.0))
    if not crops:
        raise InputError(f"{path}: its first frame shows no usable face; cut the video to where the face is seen")
    mel = data.mel_of_frames(data.normalised_mel(sound), 0, len(crops), round(audio_shift_ms / 10))
    opening, width = np.array(shapes, np.float32).T
    width /= np.median(width)
    return Clip(path.stem, "footage", np.stack(crops), mel.numpy(), opening, width, np.stack(redrawn))


def _redrawn(crop: Tensor, points: Points, generator: torch.Generator) -> NDArray[np.uint8]:
    """The crop with a mouth that has nothing to do with the sound; points: of the crop made 256 wide."""
    opening, width = augment.uniform(2, 0, 1, generator).tolist()
    image, mouth = _open_to_change(crop, points)
    return _bytes(portraits.render(image, mouth, _interior(image, mouth, generator), opening, 0.85 + 0.25 * width))


def _open_to_change(crop: Tensor, points: Points) -> tuple[Tensor, portraits.Mouth]:
    """A crop of 0 to 255 as [0, 1], and its mouth; points: of the crop made 256 wide."""
    size = crop.shape[-1]
    return crop.float() / 255, portraits.Mouth.from_mesh(points * (size / 256), size)


def _interior(image: Tensor, mouth: portraits.Mouth, generator: torch.Generator) -> portraits.Interior:
    """Inside of a mouth, by the skin beside the nose. image: (3, h, w) in [0, 1]."""
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
    spoken: SpeechSample,
    n_frames: int,
    generator: torch.Generator,
) -> Clip:
    """Part of a clip of footage whose mouth says part of something else; frames without points stay as they are.

    points: of the footage's crops, made 256 wide. Where it begins, in the picture and in the speech, is drawn.
    """
    n_frames = min(n_frames, len(footage.crops), len(spoken.opening))
    seen = data.below(len(footage.crops) - n_frames + 1, generator)
    start = data.below(len(spoken.opening) - n_frames + 1, generator)
    opening, width = spoken.opening[start : start + n_frames], spoken.width[start : start + n_frames]
    crops = []
    interior: portraits.Interior | None = None
    for index in range(n_frames):
        crop, found = footage.crops[seen + index], points[seen + index]
        if found is not None:
            image, mouth = _open_to_change(torch.from_numpy(crop), found)
            interior = interior or _interior(image, mouth, generator)
            wider = float(width[index] / footage.width[seen + index])
            crop = _bytes(portraits.render(image, mouth, interior, float(opening[index]), wider))
        crops.append(crop)
    extra = footage.crops[seen : seen + n_frames]
    return Clip(name, "dubbed", np.stack(crops), spoken.mel_window(start, n_frames).numpy(), opening, width, extra)


def still_clip(
    name: str,
    picture: NDArray[np.uint8],
    spoken: SpeechSample,
    n_frames: int,
    resolution: int,
    detector: Detector,
    face_mesh: FaceMesh,
    generator: torch.Generator,
) -> Clip | None:
    """A portrait (h, w, 3) uint8 RGB that says part of a speech; None where no face is found."""
    face = detector.detect(picture)
    matrix = None if face is None else FaceTrack(_STILL_SIZE).update(0, False, face.landmarks)
    if matrix is None:
        return None
    crop = crop_face(picture, matrix, _STILL_SIZE)
    points = face_mesh.points(crop.permute(1, 2, 0).numpy())
    if points is None:
        return None
    image, mouth = _open_to_change(crop, points)
    interior = _interior(image, mouth, generator)
    n_frames = min(n_frames, len(spoken.opening))
    first = data.below(len(spoken.opening) - n_frames + 1, generator)
    opening, width = spoken.opening[first : first + n_frames], spoken.width[first : first + n_frames]
    frames = [image] + [
        portraits.render(image, mouth, interior, float(o), float(w)) for o, w in zip(opening, width, strict=True)
    ]
    small = F.interpolate(torch.stack(frames), size=(resolution, resolution), mode="area")
    pixels = _bytes(small)
    return Clip(name, "still", pixels[1:], spoken.mel_window(first, n_frames).numpy(), opening, width, pixels[:1])


def varied(clip: Clip, name: str, generator: torch.Generator, strength: float = 0.7) -> Clip:
    """The same clip as another person in another light would look: one warp, mirror and colour for all frames."""
    pixels = torch.from_numpy(np.concatenate((clip.crops, clip.extra))).float() / 127.5 - 1
    n, channels, height, width = pixels.shape
    # As one picture of 3 n channels, and one n times as high: every frame gets the same draw.
    warped = augment.warp(pixels.reshape(1, n * channels, height, width), height, generator, strength=strength)
    tall = warped.view(n, channels, height, width).transpose(0, 1).reshape(1, channels, n * height, width)
    coloured = augment.colour(tall, generator, strength=strength)[0].view(channels, n, height, width).transpose(0, 1)
    result = ((coloured + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    split = len(clip.crops)
    return Clip(name, clip.kind, result[:split], clip.mel, clip.opening, clip.width, result[split:])


class Maker:
    """Fills a folder with clips. What a clip holds depends on its name and the seed, not on the order of making."""

    def __init__(
        self,
        folder: Path,
        settings: DataSettings,
        detector: Detector,
        audio_shifts_ms: dict[str, float],
        tell: Callable[[str], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings, self._detector, self._tell = folder, settings, detector, tell
        self._shifts_ms = audio_shifts_ms
        self._mesh = FaceMesh()
        self._real: list[SpeechSample] = []
        self._speaker: espeak.Speaker | None = None

    def close(self) -> None:
        """Let go of the face mesh."""
        self._mesh.close()

    def add_footage(self, path: Path) -> None:
        """A video's face as it was filmed, and its variants; stills and dubs made later can say what it says."""
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
        self._tell(path.stem)

    def add_dubs(self, path: Path) -> None:
        """A video's face, already added, saying other things."""
        targets = [self._folder / f"{path.stem}-d{number}.npz" for number in range(self._settings.dubs)]
        missing = [target for target in targets if not target.exists()]
        if not missing:
            return
        clip = Clip.load(self._folder / f"{path.stem}-0.npz")
        points = [self._mesh.points(data.upscaled(torch.from_numpy(crop))) for crop in clip.crops]
        for target in missing:
            generator = _seeded(self._settings.seed, target.stem)
            spoken = self._spoken(generator)
            made = dubbed_clip(target.stem, clip, points, spoken, self._settings.dub_frames, generator)
            varied(made, target.stem, generator).save(target)
        self._tell(f"{path.stem}, dubbed")

    def add_portrait(self, path: Path) -> None:
        """A portrait, made to talk; one without a usable face is left out with a warning."""
        for variant in range(self._settings.still_variants):
            target = self._folder / f"{path.stem}-s{variant}.npz"
            if target.exists():
                continue
            generator = _seeded(self._settings.seed, target.stem)
            spoken = self._spoken(generator)
            frames, resolution = self._settings.still_frames, self._settings.resolution
            picture = data.read_picture(path)
            made = still_clip(target.stem, picture, spoken, frames, resolution, self._detector, self._mesh, generator)
            if made is None:
                logger.warning("%s: no usable face; left out", path)
                return
            varied(made, target.stem, generator).save(target)
        self._tell(path.stem)

    def _spoken(self, generator: torch.Generator) -> SpeechSample:
        draw = np.random.default_rng(data.below(2**31, generator))
        if self._real and draw.random() < self._settings.real_share:
            chosen = self._real[int(draw.integers(len(self._real)))]
            return chosen.faster(float(draw.uniform(_SLOWEST, _FASTEST)))
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
    """Fill `folder` with clips; returns how many there are. A clip that is there already is kept.

    audio_shifts_ms: by a video's file name without suffix, how much later its sound is than its picture.
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
    """A generator that depends on the clip only, so that what a cache holds does not depend on the order."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
