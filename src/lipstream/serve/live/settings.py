"""What `lipstream live` can be set to. Needs no extra."""

from __future__ import annotations

from dataclasses import dataclass

from lipstream.serve.quantities import n_bytes, seconds
from lipstream.serve.settings import ListenSettings, PlaceSettings
from lipstream.settings_record import setting


@dataclass(frozen=True)
class LivePageSettings(ListenSettings, PlaceSettings):
    """Where the live page listens, whom it lets in, and what a visitor may do. Raises SettingsError."""

    max_sessions: int = setting(
        1, "visitors at a time; each takes what one session computes", group="limits", metavar="N", low=1, high=1000
    )
    max_time: str = setting("30m", "time that a visitor may stay", group="limits", metavar="TIME")
    max_upload: str = setting("50MB", "size of a recording", group="limits", metavar="SIZE")
    max_duration: str = setting("10m", "length of a recording", group="limits", metavar="TIME")
    voice: str = setting("en", "espeak-ng's voice, for text", group="service", metavar="VOICE")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_time", "max_duration"):
            seconds(name, getattr(self, name))
        n_bytes("max_upload", self.max_upload)

    @property
    def max_time_s(self) -> float:
        """`max_time` in seconds."""
        return seconds("max_time", self.max_time)

    @property
    def max_duration_s(self) -> float:
        """`max_duration` in seconds."""
        return seconds("max_duration", self.max_duration)

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload` in bytes."""
        return n_bytes("max_upload", self.max_upload)
