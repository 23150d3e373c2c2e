"""The records of the HTTP interface. Settings are derived from the fields of SyncSettings: one source for all doors."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from lipstream.errors import SettingsError
from lipstream.serve.jobs import Job, Webhook
from lipstream.serve.refused import Refused
from lipstream.serve.service import JobRequest
from lipstream.serve.webhook import key_of
from lipstream.settings import SyncSettings
from lipstream.validation import type_hints

_ADDRESS = r"^https?://"


def _settings_model() -> type[BaseModel]:
    """Return the model of SyncSettings: the same names, types, ranges, defaults and sentences."""
    hints = type_hints(SyncSettings)
    described: dict[str, Any] = {}
    for f in fields(SyncSettings):
        unset = f.metadata["unset"]
        help = f.metadata["help"] if unset is None else f"{f.metadata['help']} [{unset}]"
        bounds = {"ge": f.metadata["low"], "le": f.metadata["high"], "multiple_of": f.metadata["multiple_of"]}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        described[f.name] = (hints[f.name], Field(f.default, description=help, **given))
    config = ConfigDict(extra="forbid", strict=True)
    return create_model("Settings", __config__=config, __doc__="How one clip is lip-synced.", **described)


SettingsModel = _settings_model()


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class WebhookModel(_Model):
    """Where to report the job's end. Needs a server with --allow-urls."""

    url: str = Field(pattern=_ADDRESS, max_length=2000, description="a public http(s) address")
    secret: str = Field(
        pattern=r"^whsec_[A-Za-z0-9+/]{22,88}={0,2}$", description="whsec_ and the base64 of 16 to 64 bytes"
    )


class JobModel(_Model):
    """What a job is to do, beside its files."""

    model: str | None = Field(None, max_length=200, description="one of GET /models [the first]")
    settings: SettingsModel = Field(default_factory=SettingsModel)  # type: ignore[valid-type]
    webhook: WebhookModel | None = None


class AddressesModel(JobModel):
    """A job whose files are at public http(s) addresses. Needs a server with --allow-urls."""

    video: str = Field(pattern=_ADDRESS, max_length=2000, description="address of the video")
    audio: str = Field(pattern=_ADDRESS, max_length=2000, description="address of the speech")


class StageReply(BaseModel):
    """What a stage of the pipeline has done."""

    name: str
    seconds: float
    frames: int


class ProgressReply(BaseModel):
    """How far a job is. frames: written, of n_frames."""

    frames: int
    n_frames: int
    frames_per_s: float | None
    left_s: float | None
    stages: list[StageReply]


class ErrorReply(BaseModel):
    """What went wrong, and what to do."""

    code: str
    message: str
    fix: str | None = None


class Refusal(BaseModel):
    """The body of every answer that refuses a request."""

    error: ErrorReply


class InputReply(BaseModel):
    """What was understood of the files."""

    width: int
    height: int
    video_s: float | None
    frame_rate: float
    speech_s: float
    is_silent: bool


class JobReply(BaseModel):
    """A job as it is now. Times are seconds since 1970. position: in the queue, from 1."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "expired"]
    model: str
    settings: dict[str, Any]
    input: InputReply
    created_s: float
    started_s: float | None
    ended_s: float | None
    expires_s: float | None
    attempts: int
    position: int | None
    progress: ProgressReply | None
    result: dict[str, Any] | None
    error: ErrorReply | None


class JobsReply(BaseModel):
    """A page of jobs, the newest first. next: what `before` is for the next page; null on the last one."""

    jobs: list[JobReply]
    next: str | None


class ServedModel(BaseModel):
    """A model that jobs may name. loaded: a worker has it in memory."""

    name: str
    loaded: bool


class ModelsReply(BaseModel):
    """The models that jobs may name, the default first."""

    models: list[ServedModel]


def reply(job: Job) -> JobReply:
    """Return a job as clients see it."""
    return JobReply.model_validate({**asdict(job), "state": job.state.value})


def read_request(model: type[JobModel], text: str | bytes, key: str | None) -> tuple[JobRequest, JobModel]:
    """Return what a job's JSON asks for. key: its idempotency key. Raises Refused (422) that names the field."""
    asked = read(model, text)
    try:
        settings = SyncSettings.from_dict(asked.settings.model_dump())
    except SettingsError as error:
        raise Refused(f"settings: {error.message}", status=422, code="settings", fix=error.fix) from error
    webhook = None
    if asked.webhook is not None:
        key_of(asked.webhook.secret)
        webhook = Webhook(asked.webhook.url, asked.webhook.secret)
    if key is not None and re.fullmatch(r"[\x21-\x7e]{1,200}", key) is None:
        fix = "send 1 to 200 printable ASCII characters"
        raise Refused("the Idempotency-Key cannot be used", status=422, code="idempotency_key", fix=fix)
    return JobRequest(asked.model, settings, key, webhook), asked


def read(model: type[Any], text: str | bytes) -> Any:
    """Return what JSON holds as a record. Raises Refused (422) that names the field."""
    try:
        return TypeAdapter(model).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise Refused(f"{where}: {first['msg']}", status=422, code="request", fix="see /api/v1/openapi.json") from error
