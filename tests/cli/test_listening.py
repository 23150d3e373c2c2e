"""What the commands that serve have in common."""

from __future__ import annotations

import socket

import pytest

from lipstream.cli.listening import check_packages, listening
from lipstream.errors import SettingsError
from lipstream.serve.live.settings import LivePageSettings


def test_a_missing_package_names_its_extra() -> None:
    check_packages("the live page", "live", ("json",))
    with pytest.raises(SettingsError, match=r"the live page needs the package nowhere_at_all") as raised:
        check_packages("the live page", "live", ("json", "nowhere_at_all"))
    assert raised.value.fix == "pip install 'lipstream[live]'"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1, port {port}"):
            listening(LivePageSettings(port=port))


@pytest.mark.parametrize(
    ("name", "value"), [("max_time", "soon"), ("max_duration", "0s"), ("max_upload", "50"), ("max_sessions", 0)]
)
def test_settings_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        LivePageSettings(**{name: value})
