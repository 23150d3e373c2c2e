"""What the page's script asks for besides the interface: its own files, a job's original, its sound and its gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, StreamingResponse

from lipstream.media.audio import MODEL_SAMPLE_RATE_HZ, read_mono
from lipstream.serve.files import AUDIO, VIDEO
from lipstream.serve.ranges import asked_range
from lipstream.serve.refused import Refused
from lipstream.serve.service import Service
from lipstream.serve.states import State

ASSETS = Path(__file__).parent / "assets"
_N_PEAKS = 400
_SCRIPTS = ("page.js", "progress.js", "player.js")

JobId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]


def page_router(service: Service) -> APIRouter:
    """Return the routes under /page; a job is its client's alone."""
    router = APIRouter(prefix="/page", include_in_schema=False)

    @router.get("/{name}.js")
    def script(name: str) -> Response:
        if f"{name}.js" not in _SCRIPTS:
            return Response(status_code=404)
        return FileResponse(ASSETS / f"{name}.js", media_type="text/javascript", headers={"cache-control": "no-cache"})

    @router.get("/jobs/{job_id}/original")
    def original(job_id: JobId, request: Request) -> Response:
        """Return the video as it was sent, or the part that a Range header asks for."""
        _kept(service, job_id, request)
        n_bytes = service.files.n_bytes(job_id, VIDEO)
        begin, end = asked_range(request.headers.get("range"), n_bytes) or (0, n_bytes)
        is_part = (begin, end) != (0, n_bytes) or "range" in request.headers
        headers = {"accept-ranges": "bytes", "content-length": str(end - begin), "cache-control": "private"}
        headers |= {"x-content-type-options": "nosniff", "content-security-policy": "sandbox"}
        if is_part:
            headers["content-range"] = f"bytes {begin}-{end - 1}/{n_bytes}"
        read = service.files.read(job_id, VIDEO, begin, end)
        return StreamingResponse(read, 206 if is_part else 200, headers, media_type="video/mp4")

    @router.get("/jobs/{job_id}/timeline")
    def timeline(job_id: JobId, request: Request) -> dict[str, Any]:
        """Return how loud the speech is over time, 0 to 1, and where no face was: seconds of the result."""
        job = _kept(service, job_id, request)
        result = job.result or {}
        duration_s = float(result.get("duration_s") or job.input["speech_s"])
        with service.files.local(job_id, AUDIO) as (audio,):
            peaks = _peaks(audio, duration_s)
        rate_hz = result["frames"] / duration_s if result else 0.0
        spans = result.get("faces", {}).get("spans_without", [])
        gaps = [[first / rate_hz, (last + 1) / rate_hz] for first, last in spans]
        return {"duration_s": duration_s, "peaks": peaks, "without_face": gaps}

    return router


def _kept(service: Service, job_id: str, request: Request) -> Any:
    job = service.job(job_id, str(request.scope["client_id"]))
    if job.state is State.EXPIRED:
        raise Refused("the job's files are deleted", status=410, code="expired", fix="send it again")
    return job


def _peaks(audio: Path, duration_s: float) -> list[float]:
    """Return the loudest sample of each part of a recording, which is read once."""
    peaks = np.zeros(_N_PEAKS, np.float32)
    per_second, at = _N_PEAKS / duration_s, 0
    for block in read_mono(audio):
        parts = ((at + np.arange(len(block))) * (per_second / MODEL_SAMPLE_RATE_HZ)).astype(int)
        inside = parts < _N_PEAKS
        np.maximum.at(peaks, parts[inside], np.abs(block[inside]))
        at += len(block)
    most = float(peaks.max()) or 1.0
    return [round(float(peak) / most, 3) for peak in peaks]
