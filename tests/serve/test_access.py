"""Who comes in: tokens, other names, other pages' scripts; and when a server refuses to start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from helpers.cli import command, error_line, run
from helpers.service import serving, until
from lipstream import SettingsError
from lipstream.serve.database import Database
from lipstream.serve.service import JobRequest, Service
from lipstream.serve.settings import ServiceSettings
from lipstream.serve.tables import tokens
from lipstream.serve.tokens import add_token, list_tokens, revoke_token

Inputs = tuple[Path, Path]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_with_a_token_nobody_comes_in_without_one(service: Service, inputs: Inputs) -> None:
    with serving(service) as client:
        assert client.get("/jobs").status_code == 200  # there is none yet
        token, other = add_token(service.database, "me"), add_token(service.database, "another")
        refused = client.get("/jobs")
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        for wrong in (b"Bearer x", b"Bearer", b"Basic x", f"Bearer {token[:-1]}".encode(), b"Bearer \xe9"):
            assert client.get("/jobs", headers=[(b"authorization", wrong)]).status_code == 401
        files = {"video": inputs[0].read_bytes(), "audio": inputs[1].read_bytes()}
        assert client.post("/jobs", files=files).status_code == 401
        job_id = client.post("/jobs", files=files, headers=bearer(token)).json()["id"]
        assert client.get(f"/jobs/{job_id}", headers=bearer(token)).status_code == 200
        assert client.get(f"/jobs/{job_id}", headers=bearer(other)).status_code == 404
        assert client.get("/jobs", headers=bearer(other)).json()["jobs"] == []
        root = str(client.base_url).removesuffix("/api/v1/")
        assert [httpx.get(root + path).status_code for path in ("/healthz", "/metrics", "/")] == [200, 401, 401]
        revoke_token(service.database, "me")
        assert client.get("/jobs", headers=bearer(token)).status_code == 401
        revoke_token(service.database, "another")
        assert client.get("/jobs").status_code == 401  # without a valid token nobody comes in, rather than everybody


def test_a_browser_signs_in(service: Service) -> None:
    token = add_token(service.database, "me")
    with serving(service) as client:
        root = str(client.base_url).removesuffix("/api/v1/")
        with httpx.Client(base_url=root) as browser:
            sent = browser.get("/", headers={"Accept": "text/html"})
            assert sent.status_code == 303 and sent.headers["location"] == "/login"
            assert "<form" in browser.get("/login").text
            assert browser.post("/login", data={"token": "wrong"}).status_code == 401
            assert browser.post("/login", content=bytes(10_000)).status_code == 413
            signed_in = browser.post("/login", data={"token": token})
            assert signed_in.status_code == 303
            cookie = signed_in.headers["set-cookie"]
            assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
            assert browser.get("/api/v1/jobs").status_code == 200


def test_other_names_and_other_pages_are_kept_out(service: Service) -> None:
    with serving(service) as client:
        port = client.base_url.port
        for host, status in [
            ("evil.example", 421),
            (f"evil.example:{port}", 421),
            (f"localhost:{port}", 200),
            ("[::1]", 200),
        ]:
            assert client.get("/jobs", headers={"Host": host}).status_code == status
        foreign = {"Origin": "https://evil.example"}
        assert client.post("/jobs", headers=foreign).status_code == 403
        assert client.delete(f"/jobs/{'0' * 32}", headers=foreign).status_code == 403
        assert client.post("/jobs", headers={"Origin": "null"}).status_code == 403
        own = {"Origin": f"http://127.0.0.1:{port}"}
        assert client.delete(f"/jobs/{'0' * 32}", headers=own).status_code == 404
        read = client.get("/jobs", headers=foreign)
        asked = client.options("/jobs", headers={**foreign, "Access-Control-Request-Method": "POST"})
        assert not [name for one in (read, asked) for name in one.headers if name.startswith("access-control")]


def test_tokens_are_kept_as_digests(database: Database) -> None:
    token = add_token(database, "me")
    with database.reading() as connection:
        row = connection.execute(tokens.select()).mappings().one()
    assert token not in str(dict(row)) and re.fullmatch("[0-9a-f]{64}", row["sha256"])
    with pytest.raises(SettingsError, match="already"):
        add_token(database, "me")
    revoke_token(database, list_tokens(database)[0].id)
    assert add_token(database, "me") != token  # the name is free again
    with pytest.raises(SettingsError, match="no valid token"):
        revoke_token(database, "nobody")


def test_a_server_beyond_this_machine_wants_a_token(tmp_path: Path) -> None:
    place = ("--data", tmp_path)
    line = error_line(run("serve", *place, "--host", "0.0.0.0", "--port", "0", "--no-worker"), 2)
    assert "--host 0.0.0.0" in line and "token add" in line
    added = run("serve", "token", "add", "me", *place, "--json")
    token = json.loads(added.stdout)["token"]
    assert "me" in run("serve", "token", "list", *place).stdout
    for words in (("--host", "0.0.0.0"), ("--host", "127.0.0.1")):
        process = subprocess.Popen(
            command("serve", *place, *words, "--port", "0", "--no-worker"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=os.environ,
        )  # fmt: skip
        assert process.stdout is not None
        port = process.stdout.readline().strip().rpartition(":")[2]
        url = f"http://127.0.0.1:{port}/api/v1/jobs"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers=bearer(token)).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
        assert all(json.loads(line)["level"] for line in log.splitlines())
    revoked = run("serve", "token", "revoke", "me", *place)
    assert revoked.returncode == 0
    error_line(run("serve", *place, "--host", "0.0.0.0", "--port", "0", "--no-worker"), 2)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("serve", "--keep", "soon"), "--keep"),
        (("serve", "--max-disk", "0GB"), "--max-disk"),
        (("serve", "--max-queue", "0"), "--max-queue"),
        (("serve", "--model", "nosuch"), "nosuch"),
        (("serve", "--database", "nosuch"), "database"),
        (("worker",), "--database"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, words: tuple[str, ...], names: str) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode in (2, 5) and names in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.0.1", "localhost", "::1")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", "")),
    ],
)
def test_what_is_beyond_this_machine(host: str, is_local: bool) -> None:
    assert ServiceSettings(host=host).is_local is is_local


def test_clients_without_a_token_are_distinguished_by_their_address(service: Service, inputs: Inputs) -> None:
    with serving(service) as client:
        mine = service.submit(JobRequest(), *inputs, "127.0.0.1").id
        service.submit(JobRequest(), *inputs, "192.0.2.1")
        assert until(lambda: [job["id"] for job in client.get("/jobs").json()["jobs"]]) == [mine]
