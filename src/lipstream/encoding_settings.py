"""How the picture of a result is encoded: the part of SyncSettings that the writer of files needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lipstream.errors import SettingsError
from lipstream.settings_record import Settings, setting

VideoCodec = Literal["h264", "hevc", "av1"]
EncoderName = Literal["auto", "software", "nvenc", "qsv", "videotoolbox", "amf"]
PixelFormat = Literal[
    "auto", "yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le"
]
X264Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


@dataclass(frozen=True, kw_only=True)
class EncodingSettings(Settings):
    """How the picture is encoded. Raises SettingsError.

    encoder: "auto" takes a hardware encoder that works here, else software. pixel_format: of the samples, in libav's
    words; "auto" keeps the video's own, or the nearest that the encoder takes. crf: x264's constant rate factor, 0
    (lossless) to 51, or what corresponds to it. x264_preset: how much time goes into a smaller file.
    """

    codec: VideoCodec = setting("h264", "of the picture; h264 plays everywhere", group="input and output")
    encoder: EncoderName = setting(
        "software", "auto: a hardware encoder where one works, else software, which is finer", group="hardware"
    )
    pixel_format: PixelFormat = setting(
        "auto", "samples of the picture; auto: as the video has them, or the nearest", group="input and output"
    )
    crf: int = setting(18, "x264's quality, 0 (lossless) to 51", group="input and output", metavar="N", low=0, high=51)
    x264_preset: X264Preset = setting(
        "medium", "the encoder's effort: faster presets encode sooner, a little less faithfully", group="speed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crf == 0 and self.encoder not in ("auto", "software", "nvenc"):
            raise SettingsError(
                f"crf = 0: the encoder {self.encoder} cannot encode without loss", fix="use --encoder software"
            )
