"""Training clips: aligned crops with the sound that belongs to them, cached as one .npz a clip.

Made with the product's own reader, detector, tracker, crop and mel, so that training sees what inference sees. A
finished clip is never made again: the cache is resumable.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lipstream.errors import InputError
from lipstream.face.align import crop_face
from lipstream.face.faces import Detector
from lipstream.face.mouth import FaceMesh, mouth_opening
from lipstream.face.track import FaceTrack
from lipstream.media.audio import read_mono, resample
from lipstream.media.reader import read_frames
from lipstream.speech import mel
from lipstream.train import augment, espeak, stills

logger = logging.getLogger(__name__)

FRAME_RATE_HZ = 25
MEL_PER_FRAME = 4
# Mel frames kept before a clip's first frame and after its last: what its rows of features and their convolutions see.
MEL_BEFORE, MEL_AFTER = 12, 16
N_MELS = 80
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")

_STILL_SIZE = 256  # stills are warped at this size and then made smaller


@dataclass(frozen=True)
class Clip:
    """Frames in order with their sound.

    crops: (n, 3, res, res) uint8. mel: (N_MELS, 4 n + MEL_BEFORE + MEL_AFTER), normalised; column MEL_BEFORE + 4 i is
    where frame i begins. opening: (n,), mouth opening by any scale. extra: (m, 3, res, res) uint8, more pictures of the
    same face that can only be references: of footage (m = n) every frame with its mouth redrawn at random.
    """

    name: str
    kind: str
    crops: NDArray[np.uint8]
    mel: NDArray[np.float32]
    opening: NDArray[np.float32]
    extra: NDArray[np.uint8]

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        arrays: dict[str, Any] = {"crops": self.crops, "mel": self.mel, "opening": self.opening, "extra": self.extra}
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, kind=np.array(self.kind), **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("crops", "mel", "opening", "extra")}
            return cls(name=path.stem, kind=str(file["kind"]), **arrays)


def mel_columns(start: int, end: int) -> slice:
    """The columns of a clip's `mel` that frames `start` to `end` (exclusive) hear, margins included."""
    return slice(MEL_PER_FRAME * start, MEL_PER_FRAME * end + MEL_BEFORE + MEL_AFTER)


def normalised_mel(samples: NDArray[np.float32]) -> Tensor:
    """The product's log-mel of a whole recording (mono, 16 kHz): (N_MELS, frames)."""
    blocks = list(mel.log_mel_blocks([samples], N_MELS))
    if not blocks:
        raise InputError("a training recording is too short to hear anything in")
    joined = torch.cat(blocks, 1)
    return mel.normalise(joined, float(joined.max()))


def mel_of_frames(whole: Tensor, first_frame: int, n_frames: int, shift: int = 0) -> Tensor:
    """The columns that `n_frames` frames from `first_frame` need, edges repeated; `shift` mel frames later."""
    start = MEL_PER_FRAME * first_frame - MEL_BEFORE + shift
    columns = torch.arange(start, start + MEL_PER_FRAME * n_frames + MEL_BEFORE + MEL_AFTER)
    return whole[:, columns.clamp(0, whole.shape[1] - 1)]


def n_training_frames(n_frames: int, held_out: float) -> int:
    """How many frames from the beginning are trained on; the rest is kept for measuring."""
    return int(n_frames * (1 - held_out))


def footage_clip(
    path: Path, resolution: int, detector: Detector, face_mesh: FaceMesh, held_out: float, audio_shift_ms: float = 0.0
) -> Clip:
    """The first part of a video with its own sound; frames without a face end the clip.

    held_out: share of the frames at the end that is left out. audio_shift_ms: how much later than the picture its
    sound is in the file (negative: earlier).
    """
    track = FaceTrack(resolution)
    crops: list[NDArray[np.uint8]] = []
    redrawn: list[NDArray[np.uint8]] = []
    opening: list[float] = []
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
        points = face_mesh.points(upscaled(crop))
        crops.append(crop.numpy())
        redrawn.append(_redrawn(crop, points, generator).numpy() if points is not None else crops[0])
        opening.append(mouth_opening(points) if points is not None else (opening[-1] if opening else 0.0))
    if not crops:
        raise InputError(f"{path}: its first frame shows no usable face; cut the video to where the face is seen")
    samples = np.concatenate(list(read_mono(path)))
    sound = mel_of_frames(normalised_mel(samples), 0, len(crops), round(audio_shift_ms / 10))
    return Clip(path.stem, "footage", np.stack(crops), sound.numpy(), np.array(opening, np.float32), np.stack(redrawn))


def _redrawn(crop: Tensor, points: NDArray[np.float64], generator: torch.Generator) -> Tensor:
    """The crop with a mouth that has nothing to do with the sound; points: of the crop made 256 wide."""
    size = crop.shape[-1]
    image = crop.float() / 255
    mouth = stills.Mouth.from_mesh(points * (size / 256), size)
    opening, width = augment.uniform(2, 0, 1, generator).tolist()
    drawn = stills.render(image, mouth, _interior(image, mouth, generator), opening, 0.85 + 0.25 * width)
    return (drawn * 255).round().clamp(0, 255).to(torch.uint8)


def _interior(image: Tensor, mouth: stills.Mouth, generator: torch.Generator) -> stills.Interior:
    """Inside of a mouth, by the skin beside the nose. image: (3, h, w) in [0, 1]."""
    reach = image.shape[-1] // 25
    y, x = int(mouth.nose_base), int(mouth.left)
    skin = image[:, y - reach : y + reach, max(x - 2 * reach, 0) : x + reach // 2]
    return stills.Interior.random(skin.mean((1, 2)), generator)


def upscaled(crop: Tensor) -> NDArray[np.uint8]:
    """A crop (3, h, w) of 0 to 255 as an image (256, 256, 3), large enough for the face mesh."""
    large = F.interpolate(crop[None].float(), size=(256, 256), mode="bilinear", align_corners=False)[0]
    return large.round().to(torch.uint8).permute(1, 2, 0).numpy()


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture file as uint8 RGB (h, w, 3)."""
    return next(iter(read_frames(path))).image


def still_clip(
    name: str,
    picture: NDArray[np.uint8],
    speech: espeak.Speech,
    first_frame: int,
    n_frames: int,
    resolution: int,
    detector: Detector,
    face_mesh: FaceMesh,
    generator: torch.Generator,
) -> Clip | None:
    """A portrait (h, w, 3) uint8 RGB that says part of a synthetic speech; None where no face is found."""
    face = detector.detect(picture)
    matrix = None if face is None else FaceTrack(_STILL_SIZE).update(0, False, face.landmarks)
    if matrix is None:
        return None
    crop = crop_face(picture, matrix, _STILL_SIZE)
    points = face_mesh.points(crop.permute(1, 2, 0).numpy())
    if points is None:
        return None
    mouth = stills.Mouth.from_mesh(points, _STILL_SIZE)
    image = crop.float() / 255
    interior = _interior(image, mouth, generator)
    samples = np.concatenate(list(resample([speech.samples], speech.sample_rate_hz, mel.SAMPLE_RATE_HZ)))
    opening, width = espeak.mouth_curves(speech, first_frame + n_frames)
    frames = [image] + [
        stills.render(image, mouth, interior, float(o), float(w))
        for o, w in zip(opening[first_frame:], width[first_frame:], strict=True)
    ]
    small = F.interpolate(torch.stack(frames), size=(resolution, resolution), mode="area")
    pixels = (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    sound = mel_of_frames(normalised_mel(samples), first_frame, n_frames)
    return Clip(name, "still", pixels[1:], sound.numpy(), opening[first_frame:].astype(np.float32), pixels[:1])


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
    return Clip(name, clip.kind, result[:split], clip.mel, clip.opening, result[split:])


@dataclass(frozen=True)
class DataSettings:
    """What is made of a folder of videos and a folder of portraits."""

    resolution: int = 128
    held_out: float = 0.2
    footage_variants: int = 6
    still_variants: int = 1
    still_frames: int = 24
    seed: int = 0


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
    folder.mkdir(parents=True, exist_ok=True)
    face_mesh = FaceMesh()
    tell = report or (lambda _: None)
    for path in videos:
        first = folder / f"{path.stem}-0.npz"
        if not first.exists():
            shift = (audio_shifts_ms or {}).get(path.stem, 0.0)
            footage_clip(path, settings.resolution, detector, face_mesh, settings.held_out, shift).save(first)
        for variant in range(1, settings.footage_variants):
            target = folder / f"{path.stem}-{variant}.npz"
            if not target.exists():
                varied(Clip.load(first), target.stem, _seeded(settings.seed, target.stem)).save(target)
        tell(path.stem)
    speaker: espeak.Speaker | None = None
    for path in pictures:
        for variant in range(settings.still_variants):
            target = folder / f"{path.stem}-s{variant}.npz"
            if target.exists():
                continue
            speaker = speaker or espeak.Speaker()
            made = _talking_still(path, target.stem, speaker, settings, detector, face_mesh)
            if made is None:
                logger.warning("%s: no usable face; left out", path)
                break
            made.save(target)
        tell(path.stem)
    face_mesh.close()
    return len(clip_paths(folder))


def _talking_still(
    path: Path,
    name: str,
    speaker: espeak.Speaker,
    settings: DataSettings,
    detector: Detector,
    face_mesh: FaceMesh,
) -> Clip | None:
    generator = _seeded(settings.seed, name)
    draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    voice = str(draw.choice(espeak.VOICES)) + str(draw.choice(espeak.VARIANTS))
    text = espeak.random_text(14, draw)
    speech = speaker.say(text, voice, int(draw.integers(130, 200)), int(draw.integers(20, 80)))
    length = int(len(speech.samples) / speech.sample_rate_hz * FRAME_RATE_HZ)
    first = int(draw.integers(0, max(length - settings.still_frames, 1)))
    clip = still_clip(
        name,
        read_picture(path),
        speech,
        first,
        settings.still_frames,
        settings.resolution,
        detector,
        face_mesh,
        generator,
    )
    return None if clip is None else varied(clip, name, generator)


def _seeded(seed: int, name: str) -> torch.Generator:
    """A generator that depends on the clip only, so that what a cache holds does not depend on the order."""
    digits = int.from_bytes(name.encode(), "big") % (2**31)
    return torch.Generator().manual_seed(seed * 7919 + digits)


def clip_paths(folder: Path) -> list[Path]:
    """The clips of a cache, in the order of their names."""
    return sorted(p for p in folder.glob("*.npz") if not p.name.endswith(".tmp.npz"))


def files_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder with one of the suffixes, in the order of their names."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)


def read_shifts(path: Path) -> dict[str, float]:
    """Sound shifts from a JSON object {"clip": milliseconds}."""
    try:
        return {str(k): float(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a JSON object of milliseconds by clip ({error})") from error


def all_crops(folder: Path, every: int = 3) -> Iterator[NDArray[np.uint8]]:
    """Every `every`-th crop of all clips, uint8 (res, res, 3): what the autoencoder is trained on."""
    for path in clip_paths(folder):
        yield from Clip.load(path).crops[::every].transpose(0, 2, 3, 1)
