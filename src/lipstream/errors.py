"""What can go wrong, and the exit code that each kind of failure gives the command line.

LipstreamError          1
├── SettingsError       2  options or settings that do not belong together
├── InputError          3  a video or a recording that cannot be used
├── NoFaceError         4  no usable face in the video
├── ModelError          5  a model, a checkpoint or a face detector that cannot be used
├── OutputError         6  the output cannot be written
├── OutOfMemoryError    8  the host or the device has too little memory
└── Cancelled         130  the caller stopped the run

7 is `lipstream batch`'s, for some jobs that failed.

Every error names the file (or the frame), what is wrong and how to fix it, and is one line when printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class LipstreamError(Exception):
    """Base class of every error that lipstream raises on purpose.

    message: what is wrong. file: the file, folder or address it is about. fix: what the user can do, in the imperative.
    `str()` gives the three as "file: message. Fix: fix". `exit_code` and `code` are the command line's number and the
    word in its JSON. Survives pickling.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, file: str | Path | None = None, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.fix = fix

    def __str__(self) -> str:
        where = "" if self.file is None else f"{self.file}: "
        fix = "" if self.fix is None else f". Fix: {self.fix}"
        return f"{where}{self.message}{fix}"


class SettingsError(LipstreamError):
    """Raised for options or settings that do not make sense, or do not belong together.

    setting: the field at fault, where it is one; its name begins the message.
    """

    exit_code = 2
    code = "settings"

    def __init__(
        self, message: str, *, file: str | Path | None = None, fix: str | None = None, setting: str | None = None
    ) -> None:
        super().__init__(message, file=file, fix=fix)
        self.setting = setting


class InputError(LipstreamError):
    """Raised for a video or a recording that is missing, unreadable or empty."""

    exit_code = 3
    code = "input"


class NoFaceError(LipstreamError):
    """Raised when no frame of the video shows a usable face."""

    exit_code = 4
    code = "no_face"


class ModelError(LipstreamError):
    """Raised for a model, a checkpoint or a face detector that is missing, incomplete or unreachable."""

    exit_code = 5
    code = "model"


class OutputError(LipstreamError):
    """Raised when the output cannot be written, or already exists."""

    exit_code = 6
    code = "output"


class OutOfMemoryError(LipstreamError):
    """Raised when the host or the device runs out of memory."""

    exit_code = 8
    code = "out_of_memory"


class Cancelled(LipstreamError):
    """Raised in the caller when a run was stopped before its end; nothing is left of the output."""

    exit_code = 130
    code = "cancelled"
