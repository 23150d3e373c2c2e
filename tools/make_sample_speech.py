"""Make the bundled sample speech: one sentence spoken by the espeak-ng program, exactly five seconds long.

python tools/make_sample_speech.py [OUTPUT.wav]      needs: the program espeak-ng (apt-get install espeak-ng)
"""

from __future__ import annotations

import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "src" / "lipstream" / "sample" / "speech.wav"
SENTENCE = "Hello, this is lipstream. Give me a voice, and I make the mouth say every word."
VOICE = "en-gb+f2"
WORDS_PER_MINUTE = 170
PITCH = 55  # 0 to 99
DURATION_S = 5
LEAD_IN_S = 0.15
FADE_S = 0.05
PEAK = 0.7  # of full scale


def speak() -> tuple[np.ndarray, int]:
    """The sentence as float samples and their rate in Hz (22050, espeak-ng's own)."""
    words = ["-v", VOICE, "-s", str(WORDS_PER_MINUTE), "-p", str(PITCH), "--stdout", SENTENCE]
    spoken = subprocess.run(["espeak-ng", *words], check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate_hz = file.getframerate()
        return np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768, rate_hz


def fit(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Cut or pad to DURATION_S with silence before and a fade at the end, scaled to PEAK."""
    n_lead, n_fade, n = (round(s * rate_hz) for s in (LEAD_IN_S, FADE_S, DURATION_S))
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[loud[0] : loud[-1] + n_fade]
    print(f"speech lasts {len(samples) / rate_hz:.2f} s of {DURATION_S} s")
    fitted = np.zeros(n)
    fitted[n_lead : n_lead + len(samples)] = samples[: n - n_lead]
    fitted[-n_fade:] *= np.linspace(1, 0, n_fade)
    return fitted * (PEAK / np.abs(fitted).max())


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    samples, rate_hz = speak()
    with wave.open(str(output), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.round(fit(samples, rate_hz) * 32767).astype("<i2").tobytes())
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
