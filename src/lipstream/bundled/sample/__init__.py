"""The bundled sample: a public-domain portrait that moves a little, and synthetic speech (see tools/)."""

from __future__ import annotations

from pathlib import Path

VIDEO = Path(__file__).parent / "astronaut.mp4"
SPEECH = Path(__file__).parent / "speech.wav"
