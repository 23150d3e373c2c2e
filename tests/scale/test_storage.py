"""Files at addresses: a stand-in for S3 and a web server, both on this machine."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import error_line, run
from helpers.pipeline import read_images, write_speech
from lipstream.bundled import sample
from lipstream.errors import InputError, OutputError
from lipstream.jobs import SyncJob
from lipstream.results import SyncResult
from lipstream.scale.batch import Journal, file_work, in_threads, refuse_existing, run_batch
from lipstream.scale.storage import check_address, exists, fetched, is_address, sent, without_secrets

SECRET = "wJalrXUtnFEMI"


def test_what_is_an_address() -> None:
    assert is_address("s3://bucket/key") and is_address("https://host/a.mp4") and is_address("file:///a.mp4")
    assert not is_address("a.mp4") and not is_address("C:\\a.mp4") and not is_address(Path("s3:/a"))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host:81/a.mp4?sig=secret#secret", "https://host:81/a.mp4"),
        ("s3://secret:secret@bucket/a.mp4", "s3://bucket/a.mp4"),
        ("a?b.mp4", "a?b.mp4"),
    ],
)
def test_an_address_is_shown_without_secrets(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_local_files_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a b.mp4"
    path.write_bytes(b"video")
    with fetched(path, path.as_uri()) as found, sent(tmp_path / "out.mp4", overwrite=False) as output:
        assert found == [path, path]
        assert output == tmp_path / "out.mp4"
    assert exists(path.as_uri()) and not exists(tmp_path / "c.mp4")


# A web server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="needs lipstream[remote]")
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "in.mp4").write_bytes(bytes(range(256)) * 999)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_address_is_fetched_and_not_written(web: str) -> None:
    with fetched(f"{web}/in.mp4?sig={SECRET}") as (path,):
        assert path.read_bytes() == bytes(range(256)) * 999
        assert path.name == "in.mp4"
    assert not path.exists()
    with pytest.raises(InputError, match="there is no such file") as raised, fetched(f"{web}/no.mp4?sig={SECRET}"):
        pass
    assert raised.value.file == f"{web}/no.mp4"
    assert SECRET not in str(raised.value)
    with pytest.raises(OutputError, match="nothing can be written to a web address"):
        check_address(f"{web}/out.mp4", overwrite=True)
    with pytest.raises(InputError, match="cannot be reached") as raised, fetched("http://127.0.0.1:9/in.mp4"):
        pass


# S3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of a server on this machine, found by the environment as a real one is."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="needs lipstream[remote]")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # one state for all servers
    system = s3fs.S3FileSystem()
    system.mkdir("films")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_an_object_is_fetched_and_one_is_sent_whole(bucket: Any) -> None:
    bucket.pipe("films/in/a.mp4", b"video")
    with fetched("s3://films/in/a.mp4") as (path,):
        assert path.read_bytes() == b"video"
    with sent("s3://films/out/b.mp4", overwrite=False) as output:
        output.write_bytes(b"result")
        assert not bucket.exists("films/out/b.mp4")
    bucket.invalidate_cache()
    assert bucket.cat("films/out/b.mp4") == b"result"
    with pytest.raises(ZeroDivisionError), sent("s3://films/out/c.mp4", overwrite=False) as output:
        output.write_bytes(b"half")
        raise ZeroDivisionError
    bucket.invalidate_cache()
    assert bucket.ls("films/out", detail=False) == ["films/out/b.mp4"]
    with pytest.raises(OutputError, match=r"s3://films/out/b.mp4: it already exists"):
        check_address("s3://films/out/b.mp4", overwrite=False)
    check_address("s3://films/out/b.mp4", overwrite=True)


def test_what_is_wrong_with_an_object_is_said_without_secrets(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"s3://films/no.mp4: there is no such file"), fetched("s3://films/no.mp4"):
        pass
    with pytest.raises(OutputError) as raised, sent(f"s3://someone:{SECRET}@nowhere/a.mp4", overwrite=True) as output:
        output.write_bytes(b"result")
    assert SECRET not in str(raised.value) and "someone" not in str(raised.value)
    with pytest.raises(InputError, match=r"a library for it is missing|cannot be reached"), fetched("nothing://a/b"):
        pass


def test_jobs_from_and_to_a_bucket(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe({"films/in/a.mp4": b"video", "films/in/a.wav": b"speech"})

    def work(job: SyncJob) -> SyncResult:
        Path(job.output).write_bytes(Path(job.video).read_bytes() + b"+" + Path(job.audio).read_bytes())
        return SyncResult(Path(job.output), 25, 1.0, 0.1, 0.1, (), 25, 0, {})

    jobs = [
        SyncJob("s3://films/in/a.mp4", f"s3://films/in/{name}.wav", f"s3://films/out/{name}.mp4", name=name)
        for name in ("a", "b")
    ]

    def rows(**how: Any) -> list[dict[str, Any]]:
        journal = Journal(tmp_path, "key", resume=True)
        refuse_existing(jobs, journal)
        return list(run_batch(jobs, in_threads([file_work(work)]), journal))

    states = {row["name"]: (row["state"], row["output"]) for row in rows()}
    assert states == {"a": ("done", "s3://films/out/a.mp4"), "b": ("failed", "s3://films/out/b.mp4")}
    assert bucket.cat("films/out/a.mp4") == b"video+speech"
    bucket.pipe("films/in/b.wav", b"late")
    assert {row["state"] for row in rows()} == {"done"}
    bucket.invalidate_cache()
    assert bucket.cat("films/out/b.mp4") == b"video+late"


def test_the_command_line_takes_addresses(web: str, bucket: Any, tmp_path: Path) -> None:
    shutil.copy(sample.VIDEO, tmp_path / "web" / "film.mp4")
    write_speech(tmp_path / "web" / "speech.wav", 0.2)
    (tmp_path / "web" / "bad.mp4").write_text("text")
    words = (f"{web}/speech.wav", "-o", "s3://films/out/film.mp4", "--detector", "mediapipe", "--device", "cpu")
    done = run("sync", f"{web}/film.mp4?sig={SECRET}", *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "s3://films/out/film.mp4"
    assert SECRET not in done.stderr + done.stdout
    (tmp_path / "film.mp4").write_bytes(bucket.cat("films/out/film.mp4"))
    assert len(read_images(tmp_path / "film.mp4")) == 5
    assert "s3://films/out/film.mp4: it already exists" in error_line(run("sync", f"{web}/film.mp4", *words), 6)
    line = error_line(run("sync", f"{web}/bad.mp4?sig={SECRET}", *words, "--overwrite"), 3)
    assert f"error: {web}/bad.mp4: not a readable video" in line
