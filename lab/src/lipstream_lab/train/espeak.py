"""Synthesise speech with phoneme times by libespeak-ng (through ctypes), and derive mouth shapes from them."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import SettingsError
from lipstream.media.audio import resample

_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_EVENT_END, _EVENT_PHONEME = 0, 7
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4

VOICES = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "de", "fr", "es", "it", "pt", "nl", "sv")
VARIANTS = ("", "+m1", "+m3", "+m5", "+m7", "+f1", "+f2", "+f3", "+f4", "+f5")

_TEXT = (
    "a mother may buy many apples for the summer market people walk home above blue water we all know how papa "
    "moves big boxes before morning five happy women open every window my father always arrives late you saw the "
    "moon over our old house maybe both boys love warm bread jump back now show me what you have been thinking "
    "about good food makes people calm she sells yellow roses by the river while wind whispers through empty rooms "
    "tomorrow the farmer brings fresh eggs please keep them cold and far away from fire our new neighbour plays "
    "piano very badly but nobody minds because music makes life better when poor weather follows them all winter"
)


@dataclass(frozen=True)
class Phoneme:
    """A phoneme by espeak's mnemonic and when it begins, in seconds."""

    name: str
    time_s: float


@dataclass(frozen=True)
class Speech:
    """Mono samples in [-1, 1] (float32) with the phonemes in them."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    phonemes: tuple[Phoneme, ...]

    def at_rate(self, sample_rate_hz: int) -> NDArray[np.float32]:
        """Return the samples at another rate."""
        return np.concatenate(list(resample([self.samples], self.sample_rate_hz, sample_rate_hz)))


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Speaker:
    """espeak-ng; load it once per process. Raises SettingsError if the library is not installed."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise SettingsError("libespeak-ng is not installed", fix="apt-get install espeak-ng")
        self._library: Any = ctypes.CDLL(name)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._sample_rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS))
        self._samples: list[NDArray[np.int16]] = []
        self._phonemes: list[Phoneme] = []
        self._callback = _CALLBACK(self._receive)  # the library keeps no reference
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, words_per_minute: int = 165, pitch: int = 50) -> Speech:
        """Synthesise `text`. voice: one of VOICES plus one of VARIANTS. pitch: 0 to 99. Raises SettingsError."""
        self._samples, self._phonemes = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SettingsError(f"espeak-ng has no voice {voice!r}", fix="choose one that `espeak-ng --voices` lists")
        self._library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        joined = np.concatenate(self._samples) if self._samples else np.zeros(0, np.int16)
        return Speech(joined.astype(np.float32) / np.float32(32768), self._sample_rate_hz, tuple(self._phonemes))

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                self._phonemes.append(Phoneme(event.id.string.decode("utf-8", "replace"), event.audio_position / 1000))
            index += 1
        return 0


def random_text(n_words: int, generator: np.random.Generator) -> str:
    """Return a sentence of random words, with occasional commas for pauses."""
    words = [str(w) for w in generator.choice(_TEXT.split(), n_words)]
    return " ".join(w + ("," if generator.random() < 0.08 else "") for w in words) + "."


# Mouth shapes by the first letter of espeak's phoneme mnemonic: opening (0 to 1) and width (1 at rest).
_OPEN_WIDE: dict[str, tuple[float, float]] = (
    dict.fromkeys("pbm", (0.0, 0.97))
    | dict.fromkeys("fv", (0.10, 0.98))
    | dict.fromkeys("aA", (1.0, 1.02))
    | dict.fromkeys("V", (0.75, 1.0))
    | dict.fromkeys("eE", (0.62, 1.08))
    | dict.fromkeys("@3", (0.5, 1.0))
    | dict.fromkeys("iI", (0.38, 1.12))
    | dict.fromkeys("oO0", (0.7, 0.82))
    | dict.fromkeys("uUwyY", (0.3, 0.74))
    | dict.fromkeys("tdnszlTDrj", (0.25, 1.02))
    | dict.fromkeys("SZ", (0.25, 0.88))
    | dict.fromkeys("kgNhx", (0.32, 1.0))
)
_REST = (0.0, 1.0)
_OTHER = (0.3, 1.0)


def mouth_curves(speech: Speech, n_frames: int, frame_rate_hz: int = 25) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return opening (0 to about 1) and width (about 1) of the mouth at each frame, (n_frames,) each.

    Phoneme shapes are smoothed over about 0.1 s; openings are weighted by loudness, so that stressed vowels open wider.
    """
    fine_hz = 200
    n = int(n_frames * fine_hz / frame_rate_hz) + 1
    shapes = np.tile(np.array(_REST), (n, 1))
    for phoneme, after in zip(speech.phonemes, (*speech.phonemes[1:], None), strict=True):
        start = round(phoneme.time_s * fine_hz)
        stop = n if after is None else round(after.time_s * fine_hz)
        shapes[start:stop] = shape_of(phoneme.name)
    loudness = _loudness(speech, n, fine_hz)
    shapes[:, 0] *= 0.35 + 0.65 * loudness
    kernel = np.hanning(int(0.11 * fine_hz) + 2)[1:-1]
    kernel /= kernel.sum()
    smooth = np.stack([np.convolve(np.pad(s, len(kernel), "edge"), kernel, "same") for s in shapes.T])
    smooth = smooth[:, len(kernel) : -len(kernel)]
    at = np.minimum(np.round((np.arange(n_frames) + 0.5) * fine_hz / frame_rate_hz).astype(int), n - 1)
    return smooth[0, at], smooth[1, at]


def shape_of(name: str) -> tuple[float, float]:
    """Return opening and width of a phoneme by espeak's mnemonic; at rest for pauses."""
    letter = next((c for c in name if c.isalpha() or c in "@30"), "")
    return _OPEN_WIDE.get(letter, _OTHER) if letter else _REST


def _loudness(speech: Speech, n: int, rate_hz: int) -> NDArray[np.float64]:
    """Return the RMS level around each time step relative to its 95th percentile, 0 to 1: (n,)."""
    hop = speech.sample_rate_hz / rate_hz
    energy = np.concatenate(([0.0], np.cumsum(speech.samples.astype(np.float64) ** 2)))
    centre = np.arange(n) * hop
    low = np.clip((centre - 3 * hop).astype(int), 0, len(speech.samples))
    high = np.clip((centre + 3 * hop).astype(int), 0, len(speech.samples))
    root = np.sqrt((energy[high] - energy[low]) / (6 * hop))
    return np.minimum(root / max(float(np.percentile(root, 95)), 1e-6), 1.0)
