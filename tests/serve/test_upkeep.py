"""Files expire, the disk stays bounded, nothing is left over."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from helpers.service import FakeRender, serving, until
from lipstream.serve import upkeep
from lipstream.serve.inspect import inspect_video
from lipstream.serve.jobs import made_s, new_id
from lipstream.serve.refused import Refused
from lipstream.serve.service import JobRequest, Service
from lipstream.serve.settings import ServiceSettings
from lipstream.serve.states import State
from lipstream.settings import SyncSettings

Inputs = tuple[Path, Path]
MakeService = Callable[..., Service]


def folders(service: Service) -> set[str]:
    return {path.name for path in Path(str(service.settings.data)).iterdir() if path.is_dir()}


def once(service: Service) -> None:
    upkeep.once(service.database, service.files, service.settings)


def test_files_expire_and_the_record_after_them(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(keep="1.5s")
    cancelled, waiting = (service.submit(JobRequest(settings=SyncSettings(seed=n)), *inputs, "me").id for n in range(2))
    service.cancel(cancelled)
    once(service)
    assert folders(service) == {cancelled, waiting}
    time.sleep(1.6)
    once(service)
    assert {service.job(one).state for one in (cancelled, waiting)} == {State.EXPIRED}
    assert folders(service) == set()
    with pytest.raises(Refused) as refused:
        service.result(cancelled)
    assert refused.value.status == 410
    time.sleep(1.6)
    once(service)
    assert service.newest("me") == []


def test_a_running_job_does_not_expire(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(keep="0.5s")
    with serving(service, FakeRender(duration_s=2)) as client:
        job_id = service.submit(JobRequest(), *inputs, "127.0.0.1").id
        ended = until(lambda: (job := service.job(job_id)).has_ended and job)
        assert ended.result is not None and ended.ended_s - ended.created_s > 1.9  # four times as long as it is kept
        until(lambda: folders(service) == set())
        assert client.get(f"/jobs/{job_id}/result").status_code in (404, 410)


def test_the_disk_stays_bounded_while_jobs_come_and_expire(make_service: MakeService, inputs: Inputs) -> None:
    service = make_service(keep="2s", max_disk="60KB", lease="2s")
    root, most_bytes, n_refused, n_after = Path(str(service.settings.data)), 0, 0, 0
    with serving(service, FakeRender(result=bytes(5000))):
        end_s, seed = time.monotonic() + 120, 0
        while n_after < 3 and time.monotonic() < end_s:  # until it was full, and had room again for a few
            seed += 1
            try:
                service.submit(JobRequest(settings=SyncSettings(seed=seed)), *inputs, f"client {seed % 7}")
                n_after += n_refused > 0
            except Refused as error:
                assert error.status == 507
                n_refused += 1
            files = [path for path in root.glob("*/*") if len(path.parent.name) == 32]
            most_bytes = max(most_bytes, sum(path.stat().st_size for path in files if path.exists()))
            time.sleep(0.02)
    assert n_refused > 0 and n_after == 3
    # What is about to be refused is copied before it is counted for good: one job more, at most.
    assert most_bytes <= 60_000 + sum(path.stat().st_size for path in inputs)


def test_files_of_an_upload_whose_server_was_killed_are_deleted(service: Service, inputs: Inputs) -> None:
    job_id = service.submit(JobRequest(), *inputs, "me").id
    old, new = new_id(time.time() - 7200), new_id(time.time())
    for one in (old, new):
        service.files.put(one, "video", inputs[0])
    (Path(str(service.settings.data)) / "somebody's folder").mkdir()
    upkeep.delete_unknown(service.database, service.files)
    assert folders(service) == {job_id, new, "somebody's folder"}


def test_ids_carry_their_time_and_cannot_be_guessed() -> None:
    ids = {new_id(1_800_000_000.5) for _ in range(1000)}
    assert len(ids) == 1000 and {made_s(one) for one in ids} == {1_800_000_000.5}
    assert made_s("../" + "0" * 29) is None and made_s("0" * 31) is None


def test_files_at_an_address(make_service: MakeService, inputs: Inputs) -> None:
    """fsspec's own memory stands for a bucket: files are copied there, and to a temporary folder to be worked on."""
    service = make_service(data="memory://bucket/jobs")
    with serving(service, FakeRender()) as client:
        files = {"video": inputs[0].read_bytes(), "audio": inputs[1].read_bytes()}
        job_id = client.post("/jobs", files=files).json()["id"]
        until(lambda: client.get(f"/jobs/{job_id}").json()["state"] == "done")
        part = client.get(f"/jobs/{job_id}/result", headers={"Range": "bytes=5-8"})
        assert (part.status_code, part.content) == (206, b"1247")
        with service.local_files(job_id) as (video, result):
            assert video.read_bytes() == inputs[0].read_bytes() and result is not None and result.exists()
        assert not video.exists()
        assert service.files.job_ids() == [job_id]
        assert client.delete(f"/jobs/{job_id}").status_code == 204
        assert service.files.job_ids() == []


def test_frames_of_videos_that_were_looked_at_are_freed(inputs: Inputs) -> None:
    limits = ServiceSettings()

    def n_frames() -> int:
        return sum(type(one) is av.VideoFrame for one in gc.get_objects())

    gc.collect()
    before = n_frames()
    for _ in range(10):
        inspect_video(inputs[0], limits)
    assert n_frames() <= before + 1
