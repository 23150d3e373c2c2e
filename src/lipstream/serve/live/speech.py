"""Speech for a live session: text read by espeak-ng, a recording that was sent."""

from __future__ import annotations

import asyncio
import io
import shutil
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipstream.media.audio import read_mono
from lipstream.serve.inspect import inspect_speech
from lipstream.serve.refused import Refused

MOST_TEXT = 2000
"""Characters."""

_RECORDING_RATE_HZ = 24000
_SYNTHESIS_S = 30
_HEADER_BYTES = 44
_BLOCK_S = 0.2


@dataclass(frozen=True, eq=False)
class Speech:
    """Speech as a whole: (n,) int16 samples."""

    samples: NDArray[np.int16]
    sample_rate_hz: int

    @property
    def duration_s(self) -> float:
        """How long it is."""
        return len(self.samples) / self.sample_rate_hz

    def blocks(self) -> Iterator[NDArray[np.int16]]:
        """Yield it in parts of 0.2 s."""
        size = round(_BLOCK_S * self.sample_rate_hz)
        for begin in range(0, len(self.samples), size):
            yield self.samples[begin : begin + size]


def can_read_text() -> bool:
    """Return whether espeak-ng is on this machine."""
    return shutil.which("espeak-ng") is not None


async def from_text(text: str, voice: str) -> Speech:
    """Return the speech of a text. Raises Refused where there is no espeak-ng, or nothing to say."""
    if not text.strip() or len(text) > MOST_TEXT:
        raise Refused(f"the text needs 1 to {MOST_TEXT} characters", status=422, code="text")
    program = shutil.which("espeak-ng")
    if program is None:
        fix = "send a recording, speak, or let the server's owner install espeak-ng"
        raise Refused("this server cannot read text", status=501, code="no_voice", fix=fix)
    process = await asyncio.create_subprocess_exec(
        *(program, "-v", voice, "-b", "1", "--stdin", "--stdout"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        made, said = await asyncio.wait_for(process.communicate(text.encode()), _SYNTHESIS_S)
    except asyncio.TimeoutError as error:  # not yet the built-in one in Python 3.10
        raise Refused("espeak-ng takes too long", status=503, code="voice", fix="write less") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0 or len(made) <= _HEADER_BYTES:
        reason = " ".join(said.decode(errors="replace").split())[:200] or "it made no sound"
        raise Refused(f"espeak-ng: {reason}", status=503, code="voice", fix="start the server with another --voice")
    with wave.open(io.BytesIO(made)) as file:  # its header names no true length
        samples = file.readframes((len(made) - _HEADER_BYTES) // 2)
        return Speech(np.frombuffer(samples, "<i2").astype(np.int16), file.getframerate())


def from_recording(path: Path, most_s: float) -> Speech:
    """Return the speech of a file of any kind that holds sound. Raises Refused (422)."""
    info = inspect_speech(path, None, most_s)
    blocks = [np.rint(block * 32767).astype(np.int16) for block in read_mono(info, _RECORDING_RATE_HZ)]
    return Speech(np.concatenate(blocks), _RECORDING_RATE_HZ)
