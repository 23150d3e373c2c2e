"""What can go wrong, and the exit code each kind of failure gives the command line.

LipstreamError
├── SettingsError      2  words or settings that do not belong together
├── InputError         3  a video or a recording that cannot be used
├── NoFaceError        4  no usable face in the video
├── ModelError         5  a model, a checkpoint or a face detector that cannot be used
└── OutputError        6  the output cannot be written

Every message names the file (or frame) and the mend in one line.
"""

from __future__ import annotations

from typing import ClassVar


class LipstreamError(Exception):
    """Base of every error that lipstream raises on purpose. `exit_code` is the command line's."""

    exit_code: ClassVar[int] = 1


class SettingsError(LipstreamError):
    """Words or settings that do not make sense, or do not belong together."""

    exit_code = 2


class InputError(LipstreamError):
    """A video or a recording that is missing, unreadable or empty."""

    exit_code = 3


class NoFaceError(LipstreamError):
    """No frame of the video shows a usable face."""

    exit_code = 4


class ModelError(LipstreamError):
    """A model, a checkpoint or a face detector that is missing, incomplete or unreachable."""

    exit_code = 5


class OutputError(LipstreamError):
    """The output cannot be written, or is already there."""

    exit_code = 6
