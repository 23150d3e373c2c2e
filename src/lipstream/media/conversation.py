"""Several recordings, one for each person of a film, and their sum, the sound of the result."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from lipstream.errors import SettingsError
from lipstream.media.audio import LogMelMaximum, SharedSpeech, SpeechInfo, probe_speech
from lipstream.media.sound import Samples


@dataclass(frozen=True)
class Conversation(SpeechInfo):
    """The sum of recordings, as long as the longest, and who says which: as in `--face`, from the first to the last."""

    recordings: tuple[tuple[str, SpeechInfo], ...] = ()


def probe_conversation(
    recordings: Mapping[str, str | Path], log_mel_maximum: LogMelMaximum, *, track: int | None = None
) -> Conversation:
    """Probe the recordings of people. track: see probe_speech, of which the arguments and errors are."""
    if not recordings:
        raise SettingsError("no recording is named", fix="name one for each face")
    speeches = [probe_speech(path, log_mel_maximum, track=track) for path in recordings.values()]
    rate_hz = max(one.sample_rate_hz for one in speeches)
    is_stereo = any(one.channels > 1 for one in speeches)
    return Conversation(
        path=speeches[0].path,
        sample_rate_hz=rate_hz,
        channels=1 + is_stereo,
        layout="stereo" if is_stereo else "mono",
        n_samples=max(round(rate_hz * one.duration_s) for one in speeches),
        peak=min(1.0, sum(one.peak for one in speeches)),
        recordings=tuple(zip(recordings, speeches, strict=True)),
    )


def recordings_of(speech: SpeechInfo) -> tuple[tuple[str | None, SpeechInfo], ...]:
    """Return who says which recording; a single one is said by whoever the settings name: None."""
    return speech.recordings if isinstance(speech, Conversation) else ((None, speech),)


def sound_of(speech: SpeechInfo, readers: Sequence[SharedSpeech]) -> Generator[Samples, None, None]:
    """Yield the samples of a recording, or the sum of a conversation's: (channels, n) float32, 1.0 being full scale."""
    if not isinstance(speech, Conversation):
        yield from readers[0].planar()
        return
    with ExitStack() as opened:
        streams = [opened.enter_context(closing(_Stream(reader, speech))) for reader in readers]
        for begin in range(0, speech.n_samples, speech.sample_rate_hz):
            n = min(speech.sample_rate_hz, speech.n_samples - begin)
            yield np.clip(sum(stream.take(n) for stream in streams), -1, 1)


def with_silence(samples: Iterable[Samples], n_samples: int) -> Iterator[Samples]:
    """Yield (n,) blocks, and silence after them up to `n_samples` in all."""
    n_left = n_samples
    for block in samples:
        n_left -= len(block)
        yield block
    if n_left > 0:
        yield np.zeros(n_left, np.float32)


class _Stream:
    """One recording at the rate and with the channels of the sum, with silence after its end."""

    def __init__(self, reader: SharedSpeech, like: SpeechInfo) -> None:
        self._blocks = reader.planar()
        self._like, self._info = like, reader.info
        self._pending = np.zeros((like.channels, 0), np.float32)
        self._resampler = AudioResampler(format="fltp", layout=like.layout, rate=like.sample_rate_hz)
        self._n_read = 0

    def take(self, n: int) -> Samples:
        """Return the next `n` samples of each channel."""
        parts = [self._pending]
        n_have = self._pending.shape[1]
        while n_have < n and (part := self._next()) is not None:
            parts.append(part)
            n_have += part.shape[1]
        samples = np.concatenate(parts, 1)
        self._pending = samples[:, n:]
        taken = samples[:, :n]
        return np.pad(taken, ((0, 0), (0, n - taken.shape[1])))

    def close(self) -> None:
        self._blocks.close()

    def _next(self) -> Samples | None:
        block = next(self._blocks, None)
        if block is None:
            return None
        layout = self._info.layout
        if len(block) == 1:  # as loud as the same recording is by itself
            block, layout = np.repeat(block, self._like.channels, 0), self._like.layout
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = self._info.sample_rate_hz, Fraction(1, self._info.sample_rate_hz)
        frame.pts = self._n_read
        self._n_read += block.shape[1]
        made = [np.asarray(one.to_ndarray(), np.float32) for one in self._resampler.resample(frame)]
        return np.concatenate([self._pending[:, :0], *made], 1)
