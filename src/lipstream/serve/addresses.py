"""Addresses that clients name: http(s) to public machines alone, whatever a name resolves to and wherever it redirects.

A name is resolved once, every address that it has is checked, and the connection goes to one that was checked: a name
server that answers differently the second time gains nothing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from lipstream.serve.refused import Refused
from lipstream.version import __version__

Address = IPv4Address | IPv6Address
IsAllowed = Callable[[Address], bool]

_MOST_REDIRECTS = 5
_MOST_URL = 2000
_STEP_TIMEOUT_S = 10.0
_POST_S = 15.0
_NAT64 = IPv6Network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}


def is_public(address: Address) -> bool:
    """Return whether an address is of a public machine: not of this one, a private network, a link or a group.

    An IPv6 address that carries an IPv4 address is as that one is.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def check_address(url: str) -> None:
    """Raise Refused for what is not an http(s) address that can be connected to. Nothing is resolved yet."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in _PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_usable = False
    if not is_usable or len(url) > _MOST_URL or not url.isascii() or any(one <= " " or one == "\x7f" for one in url):
        raise _refused("it is not an http(s) address")
    if parts.username is not None or parts.password is not None:
        raise _refused("it holds a password")


def resolved(host: str, port: int, is_allowed: IsAllowed = is_public) -> list[str]:
    """Return the addresses that a name has. Raises Refused where one of them is not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _refused("its name is not known") from error
    addresses = [ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    if not addresses or not all(is_allowed(one) for one in addresses):
        raise _refused("it is not of a public machine")
    return list(dict.fromkeys(map(str, addresses)))


class _Network(httpcore.SyncBackend):
    """Connects to addresses that were checked, and to no other. end_s: on time.monotonic, when all has to be over."""

    def __init__(self, is_allowed: IsAllowed, end_s: float) -> None:
        self._is_allowed, self._end_s = is_allowed, end_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        *others, last = resolved(host, port, self._is_allowed)
        for address in others:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return _Stream(super().connect_tcp(address, port, timeout, local_address, socket_options), self._end_s)
        return _Stream(super().connect_tcp(last, port, timeout, local_address, socket_options), self._end_s)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None
    ) -> httpcore.NetworkStream:
        raise _refused("it is not an http(s) address")


class _Stream(httpcore.NetworkStream):
    """A connection that ends after a time: a machine that sends a byte now and then holds nobody."""

    def __init__(self, stream: httpcore.NetworkStream, end_s: float) -> None:
        self._stream, self._end_s = stream, end_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left_s(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left_s(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._left_s(timeout)), self._end_s)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _left_s(self, timeout: float | None) -> float:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout("the whole took too long")
        return left_s if timeout is None else min(timeout, left_s)


def fetch(
    url: str,
    target: Path,
    most_bytes: int,
    is_allowed: IsAllowed = is_public,
    most_s: float = 120.0,
) -> int:
    """Write what an address holds to a new file; return its size in bytes. most_s: how long all may take.

    Raises Refused: 422 where it cannot be fetched or is not public, 413 where it holds more than `most_bytes`.
    """
    with _pool(is_allowed, most_s) as pool:
        for _ in range(_MOST_REDIRECTS + 1):
            check_address(url)
            try:
                with pool.stream("GET", url, headers=list(_headers(url).items()), extensions=_timeouts()) as response:
                    location = _header(response.headers, b"location")
                    if response.status in (301, 302, 303, 307, 308) and location is not None:
                        url = urljoin(url, location)
                        continue
                    if response.status != 200:
                        raise _refused(f"it answered {response.status}")
                    return _save(response, target, most_bytes)
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, ssl.SSLError) as error:
                raise _refused(f"it cannot be reached ({type(error).__name__})") from error
    raise _refused(f"it redirects more than {_MOST_REDIRECTS} times")


def post(url: str, body: bytes, headers: Mapping[str, str], is_allowed: IsAllowed = is_public) -> int:
    """Send a body to an address, following no redirect; return the answer's status. Raises Refused."""
    check_address(url)
    with _pool(is_allowed, _POST_S) as pool:
        try:
            with pool.stream(
                "POST", url, headers=[*_headers(url).items(), *headers.items()], content=body, extensions=_timeouts()
            ) as response:
                return int(response.status)
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, ssl.SSLError) as error:
            raise _refused(f"it cannot be reached ({type(error).__name__})") from error


def _pool(is_allowed: IsAllowed, most_s: float) -> httpcore.ConnectionPool:
    network = _Network(is_allowed, time.monotonic() + most_s)
    return httpcore.ConnectionPool(ssl_context=ssl.create_default_context(), network_backend=network)


def _save(response: httpcore.Response, target: Path, most_bytes: int) -> int:
    n_bytes = 0
    with target.open("xb") as file:
        for block in response.iter_stream():
            n_bytes += len(block)
            if n_bytes > most_bytes:
                raise Refused("the files are too large", status=413, code="too_large", fix="name smaller files")
            file.write(block)
    return n_bytes


def _headers(url: str) -> dict[str, str]:
    return {"Host": urlsplit(url).netloc, "User-Agent": f"lipstream/{__version__}", "Accept": "*/*"}


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


def _timeouts() -> dict[str, dict[str, float]]:
    return {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), _STEP_TIMEOUT_S)}


def _refused(reason: str) -> Refused:
    return Refused(
        f"the address cannot be used: {reason}", status=422, code="address", fix="name a public http(s) address"
    )
