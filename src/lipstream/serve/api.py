"""The HTTP interface, version 1: jobs, their progress and results, models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from lipstream.serve.jobs import Job
from lipstream.serve.ranges import asked_range
from lipstream.serve.refused import Refused
from lipstream.serve.schema import (
    AddressesModel,
    JobModel,
    JobReply,
    JobsReply,
    ModelsReply,
    Refusal,
    ServedModel,
    read_request,
    reply,
)
from lipstream.serve.service import Service
from lipstream.serve.states import State
from lipstream.serve.upload import received_files

_EVENT_EVERY_S = 0.5
_COMMENT_EVERY_S = 15.0

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Refusal, "description": "no valid token"},
    404: {"model": Refusal, "description": "no such job"},
    422: {"model": Refusal, "description": "not understood, or not to be used"},
}
_FULL: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "a body that is not what its type says"},
    413: {"model": Refusal, "description": "files that are too large"},
    415: {"model": Refusal, "description": "neither multipart/form-data nor application/json"},
    429: {"model": Refusal, "description": "too many jobs: of this client, or in the queue"},
    507: {"model": Refusal, "description": "no room for more files"},
}
_REF = "#/components/schemas/"
_JOB_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["video", "audio"],
                "properties": {
                    "video": {"type": "string", "format": "binary"},
                    "audio": {"type": "string", "format": "binary"},
                    "job": {"type": "string", "description": "JSON of the schema JobModel", "default": "{}"},
                },
            }
        },
        "application/json": {"schema": {"$ref": f"{_REF}AddressesModel"}},
    },
}

router = APIRouter(prefix="/api/v1", responses=_REFUSALS)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _client(request: Request) -> str:
    return str(request.scope["client_id"])


Given = Annotated[Service, Depends(_service)]
Client = Annotated[str, Depends(_client)]
JobId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="what POST /jobs returned")]
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "the same key and request again return the same job, so that a request may be repeated",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[\\x21-\\x7e]+$"},
}


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobReply,
    responses=_FULL,
    openapi_extra={"requestBody": _JOB_BODY, "parameters": [_KEY]},
)
async def post_job(request: Request, response: Response, service: Given, client: Client) -> JobReply:
    """Queue a job: its files as multipart/form-data, or their addresses as JSON."""
    key = request.headers.get("idempotency-key")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with received_files(request, service, client) as (video, audio, text):
            asked, _ = read_request(JobModel, text, key)
            job = await to_thread.run_sync(service.submit, asked, video, audio, client, limiter=_limiter(request))
    elif kind == "application/json":
        asked, addresses = read_request(AddressesModel, await _small_body(request), key)
        assert isinstance(addresses, AddressesModel)
        files = (addresses.video, addresses.audio)
        job = await to_thread.run_sync(service.submit_addresses, asked, *files, client, limiter=_limiter(request))
    else:
        fix = "send multipart/form-data with video and audio, or JSON with their addresses"
        raise Refused(f"the content type {kind!r} is not taken", status=415, code="content_type", fix=fix)
    response.headers["location"] = f"/api/v1/jobs/{job.id}"
    return reply(job)


@router.get("/jobs", response_model=JobsReply)
def list_jobs(
    service: Given,
    client: Client,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$", description="`next` of the page before")] = None,
) -> JobsReply:
    """List one's jobs, the newest first."""
    jobs = service.newest(client, limit + 1, before)
    shown = jobs[:limit]
    return JobsReply(jobs=[reply(job) for job in shown], next=shown[-1].id if len(jobs) > limit else None)


@router.get("/jobs/{job_id}", response_model=JobReply)
def get_job(job_id: JobId, service: Given, client: Client) -> JobReply:
    """Return a job as it is now."""
    return reply(service.job(job_id, client))


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "its changes"}},
)
async def get_events(job_id: JobId, service: Given, client: Client, request: Request) -> StreamingResponse:
    """Follow a job: an event `job` with the job as data at once and after each change, until it has ended."""
    job = await run_in_threadpool(service.job, job_id, client)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(service, client, job, request), media_type="text/event-stream", headers=headers)


@router.head("/jobs/{job_id}/result", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/result",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}, "description": "a part"},
        409: {"model": Refusal, "description": "the job is not done"},
        410: {"model": Refusal, "description": "its files are deleted"},
        416: {"model": Refusal, "description": "no such part"},
    },
)
def get_result(job_id: JobId, service: Given, client: Client, request: Request) -> Response:
    """Return the video, or the part that a Range header asks for."""
    result = service.result(job_id, client)
    etag = f'"{result.job.result_name}"'
    headers = {"accept-ranges": "bytes", "etag": etag, "cache-control": "private", "x-content-type-options": "nosniff"}
    headers["content-disposition"] = f'inline; filename="lipstream-{job_id}.mp4"'
    is_same = request.headers.get("if-range") in (None, etag)
    try:
        asked = asked_range(request.headers.get("range"), result.n_bytes) if is_same else None
    except Refused as error:
        body = {"error": {"code": error.kind, "message": error.message, "fix": error.fix}}
        headers = {"content-range": f"bytes */{result.n_bytes}", "content-type": "application/json"}
        return Response(json.dumps(body), 416, headers)
    begin, end = asked or (0, result.n_bytes)
    headers["content-length"] = str(end - begin)
    if asked is not None:
        headers["content-range"] = f"bytes {begin}-{end - 1}/{result.n_bytes}"
    status = 200 if asked is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="video/mp4")
    return StreamingResponse(result.read(begin, end), status, headers, media_type="video/mp4")


@router.delete(
    "/jobs/{job_id}",
    response_model=JobReply,
    responses={204: {"description": "it had ended: its record and files are deleted"}},
)
def delete_job(job_id: JobId, service: Given, client: Client) -> Any:
    """Cancel a job that waits or runs (200, the job), or delete one that has ended with its files (204)."""
    before = service.job(job_id, client)
    if not before.has_ended:
        job = service.cancel(job_id, client)
        if job.state is State.CANCELLED:
            return reply(job)
    service.delete(job_id, client)
    return Response(status_code=204)


@router.get("/models", response_model=ModelsReply)
def get_models(service: Given) -> ModelsReply:
    """List the models that jobs may name."""
    loaded = {worker.loaded for worker in service.workers()}
    return ModelsReply(models=[ServedModel(name=name, loaded=name in loaded) for name in service.settings.model_names])


async def _events(service: Service, client: str, job: Job, request: Request) -> AsyncIterator[str]:
    sent, said_s = "", time.monotonic()
    while True:
        text = reply(job).model_dump_json()
        if text != sent:
            sent, said_s = text, time.monotonic()
            yield f"event: job\ndata: {text}\n\n"
        elif time.monotonic() - said_s > _COMMENT_EVERY_S:  # so that nothing between takes the connection for dead
            said_s = time.monotonic()
            yield ": still here\n\n"
        if job.has_ended or request.app.state.stopping.is_set():
            return
        await asyncio.sleep(_EVENT_EVERY_S)
        try:
            job = await run_in_threadpool(service.job, job.id, client)
        except Refused:  # deleted
            return


def _limiter(request: Request) -> CapacityLimiter:
    """Return what bounds the threads that look at files or fetch them, so that others are left to answer."""
    limiter: CapacityLimiter = request.app.state.submitting
    return limiter


async def _small_body(request: Request, most_bytes: int = 100_000) -> bytes:
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > most_bytes:
            raise Refused("the JSON is too large", status=413, code="too_large", fix="send only the job's fields")
    return body
