"""Files that come with a request: counted while they come, so that nothing too large is ever held."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message

from lipstream.serve.refused import Refused
from lipstream.serve.service import Service

_FORM_BYTES = 100_000
"""What the form may take beside the files."""


@asynccontextmanager
async def received_files(request: Request, service: Service, client: str) -> AsyncIterator[tuple[Path, Path, str]]:
    """Yield the local paths of a form's video and audio, and the text of its field `job`, while the block lasts.

    Raises Refused: 413 as soon as more has come than is allowed, 422 for another form than the one described.
    """
    most_bytes = service.settings.max_upload_bytes + _FORM_BYTES
    stated = request.headers.get("content-length", "")
    expected = int(stated) if stated.isdecimal() and len(stated) < 20 else most_bytes
    if expected > most_bytes:
        raise service.too_large()
    with ExitStack() as stack:
        room = service.room_for(client, min(expected, service.settings.max_upload_bytes))
        await run_in_threadpool(stack.enter_context, room)
        counted = Request(request.scope, _Counted(request, service, most_bytes))
        try:
            async with counted.form(max_files=2, max_fields=1, max_part_size=_FORM_BYTES) as form:
                if set(form) - {"video", "audio", "job"}:
                    raise _wrong_form()
                video, audio, job = form.get("video"), form.get("audio"), form.get("job", "{}")
                if not isinstance(video, UploadFile) or not isinstance(audio, UploadFile) or not isinstance(job, str):
                    raise _wrong_form()
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lipstream-")))
                await run_in_threadpool(_save, video.file, folder / "video")
                await run_in_threadpool(_save, audio.file, folder / "audio")
        except HTTPException as error:
            raise Refused(f"the form cannot be read: {error.detail}", status=400, code="form", fix=_FIX) from error
        yield folder / "video", folder / "audio", job


_FIX = "send the files as video and audio, and JSON as job"


def _wrong_form() -> Refused:
    return Refused(
        "the form needs the files video and audio, and may have a text job", status=422, code="form", fix=_FIX
    )


class _Counted:
    """Passes on what a request's body holds, until that is too much."""

    def __init__(self, request: Request, service: Service, most_bytes: int) -> None:
        self._receive, self._service, self._left_bytes = request.receive, service, most_bytes

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left_bytes -= len(message.get("body", b""))
        if self._left_bytes < 0:
            raise self._service.too_large()
        return message


def _save(source: IO[bytes], target: Path) -> None:
    with target.open("xb") as file:
        while block := source.read(1 << 20):
            file.write(block)
