"""The HTTP interface: jobs from request to result, limits with their status, ranges, events, paging."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.service import FakeRender, broken, serving, until, write_inputs
from lipstream.serve.logs import JsonFormatter
from lipstream.serve.schema import SettingsModel
from lipstream.serve.service import JobRequest, Service
from lipstream.settings import SyncSettings

Inputs = tuple[Path, Path]
MakeService = Callable[..., Service]


def post(client: httpx.Client, inputs: Inputs, key: str | None = None, **job: Any) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    files = {"video": inputs[0].read_bytes(), "audio": inputs[1].read_bytes()}
    return client.post("/jobs", files=files, data={"job": json.dumps(job)}, headers=headers)


def refused(response: httpx.Response, status: int, code: str) -> str:
    """Return the message of an answer that refuses a request with this status and code."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "fix"} and error["code"] == code
    return str(error["message"])


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    def job() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        return found if found["state"] not in ("queued", "running") else None

    found: dict[str, Any] = until(job)
    return found


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """Yield a client of a server without a worker."""
    with serving(service) as client:
        yield client


def test_a_job_from_request_to_result(service: Service, inputs: Inputs) -> None:
    with serving(service, FakeRender()) as client:
        sent = post(client, inputs, settings={"seed": 42, "preset": "fast", "guidance_interval": [0, 0.5]})
        assert sent.status_code == 202
        job = sent.json()
        assert sent.headers["location"] == f"/api/v1/jobs/{job['id']}"
        assert (job["state"], job["model"], job["settings"]["seed"]) == ("queued", "tiny", 42)
        assert job["input"] == {
            "width": 64, "height": 64, "video_s": 0.12, "frame_rate": 25.0, "speech_s": 0.2, "is_silent": False,
        }  # fmt: skip
        assert "client" not in job and "webhook_secret" not in job
        done = ended(client, job["id"])
        assert done["state"] == "done" and done["result"]["frames"] == 10 and done["expires_s"] > done["ended_s"]
        result = client.get(f"/jobs/{job['id']}/result")
        assert result.status_code == 200 and result.headers["content-type"] == "video/mp4"
        assert result.content.startswith(b"tiny 42 ")
        assert client.get("/models").json() == {"models": [{"name": "tiny", "loaded": True}]}


def test_parts_of_a_result(service: Service, inputs: Inputs) -> None:
    content = bytes(range(256)) * 2000
    with serving(service, FakeRender(result=content)) as client:
        job_id = post(client, inputs).json()["id"]
        assert ended(client, job_id)["state"] == "done"
        url, n = f"/jobs/{job_id}/result", len(content)
        for asked, begin, end in [("0-9", 0, 10), ("500-", 500, n), ("-7", n - 7, n), ("0-99999999", 0, n)]:
            part = client.get(url, headers={"Range": f"bytes={asked}"})
            assert part.status_code == 206 and part.content == content[begin:end]
            assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{n}"
        whole = client.get(url)
        assert whole.content == content and whole.headers["accept-ranges"] == "bytes"
        for ignored in ("bytes=9-3", "bytes=0-1,5-6", "lines=0-1", "bytes=-", "bytes=x-"):
            assert client.get(url, headers={"Range": ignored}).content == content
        beyond = client.get(url, headers={"Range": f"bytes={n}-"})
        refused(beyond, 416, "range")
        assert beyond.headers["content-range"] == f"bytes */{n}"
        etag = whole.headers["etag"]
        assert client.get(url, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
        assert client.get(url, headers={"Range": "bytes=0-1", "If-Range": '"another"'}).status_code == 200
        head = client.head(url)
        assert head.headers["content-length"] == str(n) and head.content == b""


def test_events_tell_of_each_change_until_the_end(service: Service, inputs: Inputs) -> None:
    with serving(service, FakeRender(duration_s=3)) as client:
        job_id = post(client, inputs).json()["id"]
        with client.stream("GET", f"/jobs/{job_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = list(response.iter_lines())
        jobs = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert lines.count("event: job") == len(jobs) >= 3
        states = [job["state"] for job in jobs]
        assert states == sorted(states, key=["queued", "running", "done"].index) and states[-1] == "done"
        frames = [job["progress"]["frames"] for job in jobs if job["progress"] is not None]
        assert frames == sorted(frames) and len(set(frames)) > 1
        refused(client.get(f"/jobs/{'0' * 32}/events"), 404, "not_found")


def test_delete_cancels_and_then_deletes(service: Service, inputs: Inputs) -> None:
    render = FakeRender(duration_s=60)
    with serving(service, render) as client:
        running, waiting = (post(client, inputs, settings={"seed": n}).json()["id"] for n in range(2))
        assert render.begun.wait(20)
        assert client.get(f"/jobs/{waiting}").json()["position"] == 1
        assert client.delete(f"/jobs/{waiting}").json()["state"] == "cancelled"
        assert client.delete(f"/jobs/{running}").json()["state"] == "cancelled"
        refused(client.get(f"/jobs/{running}/result"), 409, "no_result")
        for job_id in (running, waiting):
            assert client.delete(f"/jobs/{job_id}").status_code == 204
            refused(client.delete(f"/jobs/{job_id}"), 404, "not_found")
        until(lambda: not [path for path in Path(str(service.settings.data)).iterdir() if path.is_dir()])


def test_a_list_in_pages(service: Service, client: httpx.Client, inputs: Inputs) -> None:
    ids = [post(client, inputs, settings={"seed": n}).json()["id"] for n in range(5)]
    seen, before = [], None
    for n in (2, 2, 1):
        page = client.get("/jobs", params={"limit": 2} | ({"before": before} if before else {})).json()
        assert len(page["jobs"]) == n
        seen += [job["id"] for job in page["jobs"]]
        before = page["next"]
    assert seen == ids[::-1] and before is None
    other = service.submit(JobRequest(), *inputs, "another").id
    assert other not in [job["id"] for job in client.get("/jobs").json()["jobs"]]
    refused(client.get(f"/jobs/{other}"), 404, "not_found")
    refused(client.delete(f"/jobs/{other}"), 404, "not_found")
    refused(client.get("/jobs", params={"before": other}), 404, "not_found")
    for wrong in ({"limit": 0}, {"limit": 101}, {"before": "x"}):
        refused(client.get("/jobs", params=wrong), 422, "request")


def test_a_repeated_request_with_its_key_is_one_job(client: httpx.Client, inputs: Inputs) -> None:
    first, again = (post(client, inputs, key="k-1").json() for _ in range(2))
    assert first["id"] == again["id"]
    refused(post(client, inputs, key="k-1", settings={"seed": 1}), 422, "idempotency_key")
    refused(post(client, inputs, key="k" * 201), 422, "idempotency_key")
    assert len(client.get("/jobs").json()["jobs"]) == 1


@pytest.mark.parametrize(
    ("job", "code", "names"),
    [
        ({"settings": {"preset": "best"}}, "request", "settings.preset"),
        ({"settings": {"seed": -1}}, "request", "settings.seed"),
        ({"settings": {"sede": 1}}, "request", "settings.sede"),
        ({"settings": {"resolution": 100}}, "request", "settings.resolution"),
        ({"settings": {"face": "nobody"}}, "settings", "face"),
        ({"settings": {"guidance_interval": [0.5, 0.1]}}, "settings", "guidance_interval"),
        ({"settings": {"resolution": 4096}}, "settings", "resolution"),
        ({"model": "latentsync-1.6"}, "model", "latentsync-1.6"),
        ({"model": "../../etc"}, "model", "etc"),
        ({"output": "/tmp/x"}, "request", "output"),
        ({"webhook": {"url": "https://example.org", "secret": "x"}}, "request", "webhook.secret"),
    ],
)
def test_wrong_settings_are_named(
    client: httpx.Client, inputs: Inputs, job: dict[str, Any], code: str, names: str
) -> None:
    assert names in refused(post(client, inputs, **job), 422, code)


def test_settings_of_the_interface_are_those_of_sync_settings() -> None:
    described = SettingsModel.model_json_schema()["properties"]
    assert list(described) == [f.name for f in fields(SyncSettings)]
    for f in fields(SyncSettings):
        assert described[f.name]["description"].startswith(f.metadata["help"])
    assert SettingsModel().model_dump() == {f.name: f.default for f in fields(SyncSettings)}


def test_limits_have_each_their_status(make_service: MakeService, inputs: Inputs, tmp_path: Path) -> None:
    service = make_service(max_upload="30KB", max_duration="1s", max_pixels=64 * 64, max_client_jobs=3, max_queue=5)
    long = tmp_path / "long"
    long.mkdir()
    with serving(service) as client:
        assert "30 KB" in refused(post(client, (inputs[0], write_inputs(long, speech_s=1)[1])), 413, "too_large")
        wide = tmp_path / "wide"
        wide.mkdir()
        assert "128 x 128" in refused(
            post(client, (write_inputs(wide, side=128)[0], inputs[1])), 422, "too_many_pixels"
        )
        for seed in range(3):
            assert post(client, inputs, settings={"seed": seed}).status_code == 202
        too_many = post(client, inputs, settings={"seed": 9})
        refused(too_many, 429, "too_many_jobs")
        assert int(too_many.headers["retry-after"]) > 0
        for seed in (1, 2):
            service.submit(JobRequest(settings=SyncSettings(seed=seed)), *inputs, "another")
        refused(post(client, inputs, settings={"seed": 9}), 429, "queue_full")


def test_a_speech_that_is_too_long(make_service: MakeService, inputs: Inputs, tmp_path: Path) -> None:
    with serving(make_service(max_duration="1s")) as client:
        (tmp_path / "long").mkdir()
        long = write_inputs(tmp_path / "long", speech_s=1.5)[1]
        assert "longer than 1 s" in refused(post(client, (inputs[0], long)), 422, "too_long")


def test_a_disk_that_is_full(make_service: MakeService, inputs: Inputs) -> None:
    n_bytes = 2 * inputs[0].stat().st_size + inputs[1].stat().st_size  # with room for the result
    with serving(make_service(max_disk=f"{1.5 * n_bytes / 1000:.3f}KB")) as client:
        first = post(client, inputs).json()["id"]
        refused(post(client, inputs, settings={"seed": 2}), 507, "disk_full")
        client.delete(f"/jobs/{first}")
        client.delete(f"/jobs/{first}")
        assert post(client, inputs, settings={"seed": 2}).status_code == 202


def test_a_result_that_the_disk_has_no_room_for(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(max_disk="100KB")
    with serving(service, FakeRender(result=bytes(200_000))) as client:
        job = ended(client, post(client, inputs).json()["id"])
        assert job["state"] == "failed" and job["error"]["code"] == "disk_full"
        folder = Path(str(service.settings.data), job["id"])
        until(lambda: sorted(path.name for path in folder.iterdir()) == ["audio", "video"])


def test_a_large_body_is_refused_before_it_has_all_come(make_service: MakeService) -> None:
    with serving(make_service(max_upload="1MB")) as client:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
            while sent < 200 << 20:
                sent += 1 << 16
                yield bytes(1 << 16)

        headers = {"content-type": "multipart/form-data; boundary=b"}
        with contextlib.suppress(httpx.WriteError):  # it has hung up already
            refused(client.post("/jobs", content=endless(), headers=headers), 413, "too_large")
        assert sent < 50 << 20


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        ({"files": {"video": b"x"}}, 422, "form"),
        ({"files": {"video": b"x", "audio": b"x", "more": b"x"}}, 400, "form"),
        ({"files": {"video": b"x", "audio": b"x"}, "data": {"job": "{"}}, 422, "request"),
        ({"files": {"video": b"", "audio": b"x"}}, 422, "input"),
        ({"files": {"video": b"x" * 100, "audio": b"x"}}, 422, "input"),
        ({"data": {"video": "/etc/passwd", "audio": "/etc/passwd"}}, 415, "content_type"),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "form"),
        ({"content": b"nonsense", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
        ({"json": {"video": "file:///etc/passwd", "audio": "https://example.org/a"}}, 422, "request"),
        ({"json": {"video": "https://example.org/v", "audio": "https://example.org/a"}}, 422, "urls_not_allowed"),
        ({"content": b"{" * 200_000, "headers": {"content-type": "application/json"}}, 413, "too_large"),
    ],
)
def test_what_is_not_a_job(client: httpx.Client, content: dict[str, Any], status: int, code: str) -> None:
    refused(client.post("/jobs", **content), status, code)


@pytest.mark.parametrize(
    "list_of_files",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {path}\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{path}</BaseURL></MPD>',
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
        "plain text",
    ],
)
def test_a_list_that_names_other_files_is_never_followed(
    client: httpx.Client, inputs: Inputs, tmp_path: Path, list_of_files: str
) -> None:
    hostile = tmp_path / "list"
    hostile.write_text(list_of_files.replace("{path}", str(inputs[0])))
    assert "known kind" in refused(post(client, (hostile, inputs[1])), 422, "input")
    assert "known kind" in refused(post(client, (inputs[0], hostile)), 422, "input")


def test_errors_of_a_job_are_shown(service: Service, inputs: Inputs) -> None:
    error = broken("no frame shows a face", file="/x/video", fix="use another video")
    with serving(service, FakeRender(error=error)) as client:
        job = ended(client, post(client, inputs).json()["id"])
        assert job["state"] == "failed"
        assert job["error"] == {"code": "error", "message": "video: no frame shows a face", "fix": "use another video"}


def test_health_and_metrics(service: Service, inputs: Inputs) -> None:
    with serving(service) as client:
        root = str(client.base_url).removesuffix("/api/v1/")
        assert httpx.get(f"{root}/healthz").status_code == 200
        assert httpx.get(f"{root}/readyz").status_code == 503  # no worker anywhere
        post(client, inputs)
        assert "lipstream_queue_length 1.0" in httpx.get(f"{root}/metrics").text
    with serving(service, FakeRender()) as client:
        root = str(client.base_url).removesuffix("/api/v1/")
        until(lambda: httpx.get(f"{root}/readyz").status_code == 200)
        until(lambda: client.get("/jobs").json()["jobs"][0]["state"] == "done")
        text = httpx.get(f"{root}/metrics").text
        for line in (
            "lipstream_queue_length 0.0",
            'lipstream_jobs{state="done"} 1.0',
            'lipstream_jobs_ended_total{state="done"} 1.0',
            'lipstream_stage_seconds_total{stage="read"} 0.5',
            "lipstream_frames_total 10.0",
            "lipstream_workers 1.0",
        ):
            assert line in text.splitlines()
        assert 'lipstream_device_memory_bytes{device="none",worker="' in text
    with serving(service, FakeRender(error=broken())) as client:
        root = str(client.base_url).removesuffix("/api/v1/")
        ended(client, post(client, inputs, settings={"seed": 2}).json()["id"])
        assert 'lipstream_errors_total{kind="error"} 1.0' in httpx.get(f"{root}/metrics").text


def test_a_server_that_stops_ends_streams_and_gives_jobs_back(service: Service, inputs: Inputs) -> None:
    with serving(service, FakeRender(duration_s=60)) as client:
        job_id = post(client, inputs).json()["id"]
        until(lambda: client.get(f"/jobs/{job_id}").json()["state"] == "running")
        url = f"{client.base_url}jobs/{job_id}/events"
        streams = threading.Thread(target=lambda: httpx.get(url, timeout=60))
        streams.start()
        time.sleep(0.3)
        begun_s = time.monotonic()
    assert time.monotonic() - begun_s < 10
    streams.join(10)
    assert service.job(job_id).position == 1


def test_a_line_of_the_log_is_one_object_with_the_jobs_id(
    service: Service, inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lipstream.serve")
    with serving(service, FakeRender(error=RuntimeError("boom"))) as client:
        job_id = post(client, inputs).json()["id"]
        ended(client, job_id)
        until(lambda: "failed" in caplog.messages)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    mine = {line["message"]: line for line in lines if line.get("job") == job_id}
    assert {"queued", "begun", "failed"} <= set(mine)
    assert mine["failed"]["level"] == "error" and "boom" in mine["failed"]["traceback"]
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in lines)


def test_the_documented_client(
    service: Service, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    inputs[1].rename("speech.wav")
    with serving(service, FakeRender()) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of files that the three lines leave to be closed
        exec(code, {"client": client, "Path": Path})
    assert Path("out.mp4").read_bytes().startswith(b"tiny 1247 ")


def test_a_result_that_grows_too_large_is_stopped(make_service: MakeService, inputs: Inputs) -> None:
    class Endless(FakeRender):
        def __call__(self, work: Any, on_progress: Any, cancel: threading.Event) -> Any:
            work.output.with_name(".unfinished").write_bytes(bytes(300_000))
            return super().__call__(work, on_progress, cancel)

    with serving(make_service(max_disk="200KB", lease="0.6s"), Endless(duration_s=60)) as client:
        job = ended(client, post(client, inputs).json()["id"])
        assert (job["state"], job["error"]["code"]) == ("failed", "disk_full")
