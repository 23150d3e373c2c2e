"""Reports to clients: signed, sent once and again after a failure, never to a private machine."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from helpers.service import FakeRender, broken, serving, until
from helpers.web import Answers, answering, loopback_too
from lipstream.serve import webhook
from lipstream.serve.jobs import Webhook
from lipstream.serve.refused import Refused
from lipstream.serve.service import JobRequest, Service
from lipstream.serve.states import State
from lipstream.serve.tables import jobs
from lipstream.serve.webhook import RETRY_AFTER_S, deliver_due, signed

Inputs = tuple[Path, Path]
KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of standardwebhooks.com's libraries."""
    headers = signed(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_AAAA", "secret", SECRET.removeprefix("whsec_"), SECRET + "!"])
def test_a_secret_that_is_none(secret: str) -> None:
    with pytest.raises(Refused, match="secret"):
        webhook.key_of(secret)


@pytest.mark.parametrize(("error", "state"), [(None, "done"), (broken("no face"), "failed")])
def test_the_end_of_a_job_is_reported(
    make_service: Callable[..., Service], inputs: Inputs, error: Exception | None, state: str
) -> None:
    service = make_service(allow_urls=True, is_allowed=loopback_too, lease="2s")
    seen: list[Any] = []
    with answering({"/hook": (204, {}, b"")}, seen) as port, serving(service, FakeRender(error=error)) as client:
        files = {"video": inputs[0].read_bytes(), "audio": inputs[1].read_bytes()}
        asked = {"webhook": {"url": f"http://127.0.0.1:{port}/hook", "secret": SECRET}}
        sent = client.post("/jobs", files=files, data={"job": json.dumps(asked)})
        assert sent.status_code == 202 and SECRET not in sent.text
        until(lambda: seen)
        method, path, headers, body = seen[0]
        assert (method, path) == ("POST", "/hook")
        assert headers["webhook-id"] == sent.json()["id"]
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(KEY, content, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        event = json.loads(body)
        assert event["type"] == f"job.{state}"
        assert event["data"]["id"] == sent.json()["id"] and event["data"]["state"] == state
        until(lambda: deliver_due(service.database, loopback_too) == 0 and len(seen) == 1)


def test_a_report_that_fails_is_sent_again_and_given_up_in_the_end(
    make_service: Callable[..., Service], inputs: Inputs
) -> None:
    service = make_service(allow_urls=True, is_allowed=loopback_too)
    answers: Answers = {"/hook": (500, {}, b"")}
    seen: list[Any] = []
    with answering(answers, seen) as port:
        url = f"http://127.0.0.1:{port}/hook"
        ids = [
            service.submit(JobRequest(idempotency_key=key, webhook=Webhook(url, SECRET)), *inputs, "me").id
            for key in "ab"
        ]
        assert deliver_due(service.database, loopback_too) == 0 and seen == []  # they have not ended
        service.cancel(ids[0])
        for n in range(1, len(RETRY_AFTER_S) + 2):
            assert deliver_due(service.database, loopback_too) == 0 and len(seen) == n
            assert deliver_due(service.database, loopback_too) == 0 and len(seen) == n  # not before its time
            with service.database.writing() as connection:
                connection.execute(update(jobs).where(jobs.c.webhook_due_s.is_not(None)).values(webhook_due_s=0))
        assert deliver_due(service.database, loopback_too) == 0 and len(seen) == len(RETRY_AFTER_S) + 1
        answers["/hook"] = (302, {"location": "/other"}, b"")  # not followed
        service.cancel(ids[1])
        assert deliver_due(service.database, loopback_too) == 0 and seen[-1][1] == "/hook"
        answers["/hook"] = (200, {}, b"")
        with service.database.writing() as connection:
            connection.execute(update(jobs).where(jobs.c.webhook_due_s.is_not(None)).values(webhook_due_s=0))
        assert deliver_due(service.database, loopback_too) == 1
    assert service.job(ids[0]).state is State.CANCELLED


def test_nothing_is_sent_to_a_private_machine(make_service: Callable[..., Service], inputs: Inputs) -> None:
    service = make_service(allow_urls=True)
    seen: list[Any] = []
    with answering({"/": (200, {}, b"")}, seen) as port:
        hook = Webhook(f"http://127.0.0.1:{port}/", SECRET)
        service.cancel(service.submit(JobRequest(webhook=hook), *inputs, "me").id)
        assert deliver_due(service.database) == 0
    assert seen == []
    with pytest.raises(Refused, match="not fetched"):
        make_service().submit(JobRequest(webhook=hook), *inputs, "me")
