"""Fill a folder with training clips from videos and portraits.

Existing clips are kept, so an interrupted run resumes.

Neither the kind of face nor the jaw may predict the speech. Stills are therefore animated with synthetic speech and
with that of the videos, and the videos' faces are dubbed with either.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.evaluate.mouth import FaceMesh
from lipstream.face.detector import Detector
from lipstream.media.audio import read_mono
from lipstream.models.names import BUNDLED
from lipstream_lab.train import data, espeak, offset
from lipstream_lab.train.data import Clip
from lipstream_lab.train.dataset import dubbed_clip, footage_clip, open_mouths, still_clip, varied
from lipstream_lab.train.interiors import Filmed
from lipstream_lab.train.speech_samples import SpeechSample
from lipstream_lab.train.videos import Video

logger = logging.getLogger(__name__)

_MIN_SPEED, _MAX_SPEED = 0.85, 1.2  # of real speech used for dubbing


@dataclass(frozen=True)
class DataSettings:
    """Number and kind of the clips to make.

    footage_variants: colour and shape variations of a person's only video; of several videos, so many in all, but at
    least one each. dubs: dubbed clips of `dub_frames` frames per person. real_share: share of stills and dubs with the
    speech of a video rather than a synthetic voice.
    """

    resolution: int = 128
    footage_variants: int = 6
    dubs: int = 16
    dub_frames: int = 72
    still_variants: int = 2
    still_frames: int = 24
    real_share: float = 0.5
    seed: int = 0


class Maker:
    """Fills a folder with clips. A clip depends on its name and the seed, not on the order of creation.

    delays_ms: of the sound of a video against its picture, by the video's name; searched for where not given.
    """

    def __init__(
        self,
        folder: Path,
        settings: DataSettings,
        detector: Detector,
        delays_ms: Mapping[str, float],
        report: Callable[[str], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings, self._detector, self._report = folder, settings, detector, report
        self._delays_ms = delays_ms
        self._mesh = FaceMesh()
        self._predict: offset.Predict | None = None
        self._real: dict[str, list[SpeechSample]] = {}
        self._interiors: dict[str, list[Filmed]] = {}
        self._lent_interiors: dict[str, list[Filmed]] = {}
        self._speaker: espeak.Speaker | None = None

    def close(self) -> None:
        """Close the face mesh."""
        self._mesh.close()

    def add_footage(self, video: Video, variants: int) -> float:
        """Add a video's face and its variants; stills and dubs added later may use its speech. Return its delay."""
        first = self._folder / f"{video.name}-0.npz"
        sound = np.concatenate(list(read_mono(video.path)))
        if not first.exists():
            footage_clip(
                video,
                self._settings.resolution,
                self._detector,
                self._mesh,
                sound,
                lambda mel, opening: self._delay_ms(video, mel, opening),
            ).save(first)
        clip = Clip.load(first)
        self._real.setdefault(video.person, []).append(SpeechSample.real(sound, clip))
        opened = open_mouths(clip, self._mesh.points)
        self._interiors.setdefault(video.person, []).extend(opened)
        self._lent_interiors.setdefault(video.person, []).extend(interior.in_white_light() for interior in opened)
        for variant in range(1, variants):
            target = self._folder / f"{video.name}-{variant}.npz"
            if not target.exists():
                varied(clip, target.stem, data.seeded(self._settings.seed, target.stem)).save(target)
        self._report(f"{video.name}: sound {clip.late_ms:+.0f} ms")
        return clip.late_ms

    def _delay_ms(self, video: Video, mel: Tensor, opening: NDArray[np.float32]) -> float:
        if video.name in self._delays_ms:
            return self._delays_ms[video.name]
        self._predict = self._predict or offset.predictor(BUNDLED[0])
        found = offset.find_offset(mel, opening, self._predict)
        logger.info("%s: sound %d ms late, r %.2f (unmoved %.2f)", video.name, found.late_ms, found.r, found.r_unmoved)
        return float(found.late_ms)

    def add_dub(self, video: Video, number: int) -> None:
        """Add a dubbed clip of a video that was added before."""
        target = self._folder / f"{video.name}-d{number}.npz"
        if target.exists():
            return
        clip = Clip.load(self._folder / f"{video.name}-0.npz")
        points = [self._mesh.points(data.upscaled(torch.from_numpy(crop))) for crop in clip.crops]
        generator = data.seeded(self._settings.seed, target.stem)
        speech = self._draw_speech(generator)
        interiors = self._interiors.get(video.person) or self._any_interiors(generator)
        made = dubbed_clip(target.stem, clip, points, speech, self._settings.dub_frames, interiors, generator)
        varied(made, target.stem, generator).save(target)
        self._report(target.stem)

    def add_portrait(self, path: Path) -> None:
        """Add animated clips of a portrait; one without a usable face is skipped with a warning."""
        for variant in range(self._settings.still_variants):
            target = self._folder / f"{path.stem}-s{variant}.npz"
            if target.exists():
                continue
            generator = data.seeded(self._settings.seed, target.stem)
            made = still_clip(
                target.stem,
                path.stem,
                data.read_picture(path),
                self._draw_speech(generator),
                self._settings.still_frames,
                self._settings.resolution,
                self._detector,
                self._mesh,
                self._any_interiors(generator),
                generator,
            )
            if made is None:
                logger.warning("%s: no usable face, skipped", path)
                return
            varied(made, target.stem, generator).save(target)
        self._report(path.stem)

    def _any_interiors(self, generator: torch.Generator) -> list[Filmed]:
        """Return the insides of the mouth of one of the people filmed, to be lent; none if nobody opened it."""
        people = [person for person in sorted(self._lent_interiors) if self._lent_interiors[person]]
        return self._lent_interiors[people[data.below(len(people), generator)]] if people else []

    def _draw_speech(self, generator: torch.Generator) -> SpeechSample:
        draw = np.random.default_rng(data.below(2**31, generator))
        if self._real and draw.random() < self._settings.real_share:
            people = sorted(self._real)
            weights = np.array([math.sqrt(len(self._real[person])) for person in people])
            samples = self._real[people[int(draw.choice(len(people), p=weights / weights.sum()))]]
            return samples[int(draw.integers(len(samples)))].faster(float(draw.uniform(_MIN_SPEED, _MAX_SPEED)))
        self._speaker = self._speaker or espeak.Speaker()
        return SpeechSample.synthetic(self._speaker, draw)


def make(
    videos: Sequence[Video],
    pictures: Sequence[Path],
    folder: Path,
    settings: DataSettings,
    detector: Detector,
    delays_ms: Mapping[str, float] | None = None,
    report: Callable[[str], None] | None = None,
) -> int:
    """Fill `folder` with clips and return their number. Existing clips are kept.

    delays_ms: as for `Maker`. The delays of all videos are written to `delays.json` beside the folder.
    """
    maker = Maker(folder, settings, detector, delays_ms or {}, report or (lambda _: None))
    trained = [video for video in videos if video.held_out < 1]
    counts = Counter(video.person for video in trained)
    used = {v.name: maker.add_footage(v, math.ceil(settings.footage_variants / counts[v.person])) for v in trained}
    if used:
        (folder.parent / "delays.json").write_text(json.dumps(used, indent=1) + "\n")
    for person in counts:
        own = [video for video in trained if video.person == person]
        for number in range(settings.dubs):
            maker.add_dub(own[number % len(own)], number)
    for path in pictures:
        maker.add_portrait(path)
    maker.close()
    return len(data.clip_paths(folder))
