"""Fetching a detector's models: announced, once, whole or not at all."""

from __future__ import annotations

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.face import write_files
from lipstream.errors import ModelError
from lipstream.face import insightface as insight
from lipstream.face.insightface import fetch_models


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`, and of those in `cut` the first half only."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    cut: set[str] = set()  # noqa: RUF012

    def do_GET(self) -> None:
        body = self.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path in self.cut else body)

    def log_message(self, *values: object) -> None:
        pass


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return buffer.getvalue()


GOOD = zipped(**{"2d106det.onnx": b"landmarks" * 50, "det_500m.onnx": b"boxes" * 50, "genderage.onnx": b"other"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a server that has buffalo_s.zip; no model is in the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Server, "files", {"/buffalo_s.zip": GOOD})
    monkeypatch.setattr(Server, "cut", set())
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=served.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def test_models_are_fetched_after_their_licence_is_announced(server, tmp_path):
    lines: list[str] = []
    folder = fetch_models("buffalo_s", lines.append, url=server)
    assert folder == tmp_path / ".insightface/models/buffalo_s"
    assert (folder / "det_500m.onnx").read_bytes() == b"boxes" * 50
    assert [entry.name for entry in folder.parent.iterdir()] == ["buffalo_s"]
    assert "non-commercial" in lines[0]
    assert lines[1] == f"downloading {server}/buffalo_s.zip"


def test_models_that_are_there_are_not_fetched_again(server, tmp_path):
    write_files(tmp_path, "buffalo_s")
    assert fetch_models("buffalo_s", lambda line: None, url="http://127.0.0.1:9") == insight.models_folder("buffalo_s")


def test_an_incomplete_folder_is_completed(server, tmp_path):
    folder = write_files(tmp_path, "buffalo_s")
    (folder / "2d106det.onnx").unlink()
    fetch_models("buffalo_s", lambda line: None, url=server)
    assert (folder / "2d106det.onnx").read_bytes() == b"landmarks" * 50
    assert (folder / "det_500m.onnx").read_bytes() == b"boxes" * 50


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "cut", {"/buffalo_s.zip"})


def serve(contents: bytes | None):
    def change(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Server, "files", {} if contents is None else {"/buffalo_s.zip": contents})

    return change


def pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insight, "_SHA256", {"buffalo_s": "0" * 64})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"broke off"),
        (serve(None), r"answers 404"),
        (serve(b"<html>please log in</html>"), r"damaged, or not a zip archive"),
        (serve(GOOD.replace(b"boxesboxes", b"boxesBOXES", 1)), r"damaged, or not a zip archive"),
        (serve(zipped(**{"2d106det.onnx": b"", "../../det_10g.onnx": b""})), r"leads out of the folder"),
        (serve(zipped(**{"2d106det.onnx": b"", "..\\det_10g.onnx": b""})), r"leads out of the folder"),
        (serve(zipped(**{"2d106det.onnx": b"", "/tmp/det_10g.onnx": b""})), r"leads out of the folder"),
        (serve(zipped(**{"genderage.onnx": b""})), r"no file det_\*"),
        (pin, r"not the published archive"),
    ],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, monkeypatch, change, message):
    change(monkeypatch)
    with pytest.raises(ModelError, match=message):
        fetch_models("buffalo_s", lambda line: None, url=server)
    assert list(tmp_path.rglob("*.onnx")) == []
    assert list((tmp_path / ".insightface/models").iterdir()) == []


def test_an_unreachable_server_is_a_model_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ModelError, match=r"127.0.0.1:9/buffalo_s.zip: the server cannot be reached"):
        fetch_models("buffalo_s", lambda line: None, url="http://127.0.0.1:9")


def test_a_folder_that_cannot_be_written_is_a_model_error(server, tmp_path):
    (tmp_path / ".insightface").write_text("a file")
    with pytest.raises(ModelError, match=r"buffalo_s: cannot be stored"):
        fetch_models("buffalo_s", lambda line: None, url=server)
