"""Addresses from clients: public machines alone, whatever a name says, redirects say, or a name server says later."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from helpers.service import FakeRender, serving, until
from helpers.web import Answers, answering, loopback_too
from lipstream.serve import addresses
from lipstream.serve.addresses import check_address, fetch, is_public, post
from lipstream.serve.refused import Refused
from lipstream.serve.service import Service

MakeService = Callable[..., Service]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
        "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1",
        "2002:7f00:1::1", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/a", "gopher://x", "//example.org", "http://", "http:///a",
        "/etc/passwd", "http://user:secret@example.org/", "http://example.org:0/", "http://example.org:99999/",
        "http://exa mple.org/",
        "http://example.org/\r\nHost: x", "http://[::1", "https://example.org/" + "a" * 2000, "s3://bucket/key",
    ],
)  # fmt: skip
def test_what_is_not_an_address(url: str) -> None:
    with pytest.raises(Refused) as refused:
        check_address(url)
    assert refused.value.status == 422


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "0"],
)
def test_this_machine_is_never_asked(tmp_path: Path, host: str) -> None:
    seen: list[Any] = []
    with answering({"/": (200, {}, b"secret")}, seen) as port:
        for ask in (
            lambda: fetch(f"http://{host}:{port}/", tmp_path / "f", 100),
            lambda: post(f"http://{host}:{port}/", b"", {}),
        ):
            with pytest.raises(Refused, match="cannot be used"):
                ask()
    assert seen == [] and not (tmp_path / "f").exists()


def names(monkeypatch: pytest.MonkeyPatch, known: dict[str, list[str]]) -> None:
    """Let a name server answer with these addresses, each time the next one of the list, the last again and again."""

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror("not known")
        found = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found.split()]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("found", ["127.0.0.1", "10.0.0.7", "93.184.215.14 127.0.0.1", "169.254.169.254"])
def test_a_name_of_a_private_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    names(monkeypatch, {"innocent.example": [found]})
    with pytest.raises(Refused, match="not of a public machine"):
        fetch("http://innocent.example/video.mp4", tmp_path / "f", 100)
    with pytest.raises(Refused, match="not known"):
        fetch("http://unknown.example/", tmp_path / "f", 100)


def test_the_connection_goes_to_the_address_that_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers with a public address first and with this machine's afterwards gains nothing."""
    names(monkeypatch, {"rebinding.example": ["93.184.215.14", "127.0.0.1"]})
    connected: list[str] = []

    def create_connection(address: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        connected.append(address[0])
        raise OSError("no network in tests")

    monkeypatch.setattr(addresses.socket, "create_connection", create_connection)
    with pytest.raises(Refused, match="cannot be reached"):
        fetch("http://rebinding.example/", tmp_path / "f", 100)
    assert connected == ["93.184.215.14"]
    with pytest.raises(Refused, match="not of a public machine"):
        fetch("http://rebinding.example/", tmp_path / "f", 100)
    assert len(connected) == 1


def test_redirects_are_checked_like_the_first_address(tmp_path: Path) -> None:
    public = {"127.0.0.1"}  # in this test this machine is a public one, and its other addresses are not

    def is_allowed(address: Any) -> bool:
        return str(address) in public

    for target in (
        "http://127.0.0.2:{port}/secret",
        "file:///etc/passwd",
        "http://[::1]:{port}/secret",
        "ftp://127.0.0.1/",
    ):
        seen: list[Any] = []
        answers: Answers = {"/secret": (200, {}, b"secret")}
        with answering(answers, seen) as port:
            answers["/"] = (302, {"location": target.format(port=port)}, b"")
            with pytest.raises(Refused, match="cannot be used"):
                fetch(f"http://127.0.0.1:{port}/", tmp_path / "f", 100, is_allowed)
        assert [path for _, path, _, _ in seen] == ["/"]


def test_what_is_fetched(tmp_path: Path) -> None:
    answers: Answers = {
        "/there": (200, {}, b"content"),
        "/moved": (301, {"location": "/there"}, b""),
        "/loop": (302, {"location": "/loop"}, b""),
        "/large": (200, {}, bytes(2000)),
    }
    seen: list[Any] = []
    with answering(answers, seen) as port:
        url = f"http://127.0.0.1:{port}"
        assert fetch(f"{url}/moved", tmp_path / "a", 100, loopback_too) == 7
        assert (tmp_path / "a").read_bytes() == b"content"
        assert seen[0][2]["host"] == f"127.0.0.1:{port}"
        for path, status in (("loop", 422), ("missing", 422), ("large", 413)):
            with pytest.raises(Refused) as refused:
                fetch(f"{url}/{path}", tmp_path / path, 1000, loopback_too)
            assert refused.value.status == status


def test_a_job_by_addresses(make_service: MakeService, inputs: tuple[Path, Path]) -> None:
    answers: Answers = {"/v": (200, {}, inputs[0].read_bytes()), "/a": (200, {}, inputs[1].read_bytes())}
    with answering(answers) as port:
        url = f"http://127.0.0.1:{port}"
        body = {"video": f"{url}/v", "audio": f"{url}/a", "settings": {"seed": 3}}
        with serving(make_service(allow_urls=True)) as client:
            assert "public" in client.post("/jobs", json=body).json()["error"]["message"]
        with serving(make_service(allow_urls=True, is_allowed=loopback_too), FakeRender()) as client:
            sent = client.post("/jobs", json=body)
            assert sent.status_code == 202
            url = f"/jobs/{sent.json()['id']}/result"
            until(lambda: client.get(url).status_code == 200)
            assert client.get(url).content.startswith(b"tiny 3 ")
        with serving(make_service(allow_urls=True, is_allowed=loopback_too, max_upload="1KB")) as client:
            assert client.post("/jobs", json=body).status_code == 413


def test_a_machine_that_sends_a_byte_now_and_then_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Header: ")
                while not stop.wait(0.05):
                    connection.sendall(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(Refused, match="cannot be reached"):
                fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", tmp_path / "f", 100, loopback_too, most_s=0.6)
        finally:
            stop.set()
            thread.join(20)
