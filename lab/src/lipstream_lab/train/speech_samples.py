"""Speech samples with mouth shapes, real or synthetic, to animate faces with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features import mel
from lipstream.media.audio import resample
from lipstream.settings import FRAME_RATE_HZ
from lipstream_lab.train import espeak
from lipstream_lab.train.data import Clip, mel_of_frames, normalised_mel

# Openings from phonemes have a mean of 0.27 and a standard deviation of 0.22; measured on people, 0.6 and 0.4.
_OPENING_GAIN = 1.8


@dataclass(frozen=True)
class SpeechSample:
    """A recording with its mouth shapes.

    samples: (n,) float32 mono at mel.SAMPLE_RATE_HZ. opening, width: (frames,) float32 as in `Clip`.
    """

    samples: NDArray[np.float32]
    opening: NDArray[np.float32]
    width: NDArray[np.float32]

    @classmethod
    def synthetic(cls, speaker: espeak.Speaker, draw: np.random.Generator) -> SpeechSample:
        """Synthesise a random sentence with a random voice of espeak-ng; mouth shapes follow the phonemes."""
        voice = str(draw.choice(espeak.VOICES)) + str(draw.choice(espeak.VARIANTS))
        text = espeak.random_text(14, draw)
        speech = speaker.say(text, voice, int(draw.integers(130, 200)), int(draw.integers(20, 80)))
        opening, width = espeak.mouth_curves(speech, int(len(speech.samples) / speech.sample_rate_hz * FRAME_RATE_HZ))
        shapes = (_OPENING_GAIN * opening).astype(np.float32), width.astype(np.float32)
        return cls(speech.at_rate(mel.SAMPLE_RATE_HZ), *shapes)

    @classmethod
    def real(cls, samples: NDArray[np.float32], footage: Clip) -> SpeechSample:
        """Return the speech of a clip of footage. samples: of its whole video."""
        first = round(footage.late_ms * mel.SAMPLE_RATE_HZ / 1000)
        length = len(footage.opening) * mel.SAMPLE_RATE_HZ // FRAME_RATE_HZ
        part = np.pad(samples, (max(-first, 0), 0))[max(first, 0) :][:length]
        return cls(np.pad(part, (0, length - len(part))), footage.opening, footage.width)

    def faster(self, factor: float) -> SpeechSample:
        """Return the speech sped up by `factor`, which also raises its pitch."""
        rate_hz = round(mel.SAMPLE_RATE_HZ * factor)
        samples = np.concatenate(list(resample([self.samples], rate_hz, mel.SAMPLE_RATE_HZ)))
        frames = np.arange(len(self.opening))
        at = np.arange(int(len(frames) / factor)) * factor
        opening, width = (np.interp(at, frames, curve).astype(np.float32) for curve in (self.opening, self.width))
        return SpeechSample(samples, opening, width)

    def mel_window(self, first_frame: int, n_frames: int) -> Tensor:
        """Return the `mel` of a clip for `n_frames` frames from `first_frame`."""
        return mel_of_frames(normalised_mel(self.samples), first_frame, n_frames)
