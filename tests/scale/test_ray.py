"""A real cluster of two nodes on this machine: same frames, and nothing lost when a worker or a node is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.cli import error_line, run
from helpers.pipeline import psnr_db, read_images, write_speech
from lipstream import InputError, LipSync, RuntimeSettings, SettingsError, SyncJob, SyncSettings
from lipstream.bundled import sample
from lipstream.pipeline.file_job import probe_inputs
from lipstream.scale import ray_nodes
from lipstream.scale.batch import Journal, run_batch
from lipstream.scale.ray import Cluster, _Task
from lipstream.scale.ray_nodes import RaySettings
from lipstream.scale.segments import run_in_segments, sync_in_segments

ray = pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(280),
]

N_FRAMES = 75
RUNTIME = RuntimeSettings(device="cpu", detector="mediapipe", threads=1)
SETTINGS = SyncSettings(crf=10, x264_preset="ultrafast")
MB = 1_000_000


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    from ray.cluster_utils import Cluster as TestCluster

    node = {"num_cpus": 1, "object_store_memory": 80 * MB}
    nodes = TestCluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope="class")
def cluster(two_nodes: Any) -> Iterator[Cluster]:
    with Cluster(RaySettings(two_nodes.address), "tiny", RUNTIME) as joined:
        yield joined


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech") / "speech.wav", N_FRAMES / 25, 16000)


@pytest.fixture(scope="module")
def alone(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process makes of the sample, with one thread, as a worker has: more of them round differently."""
    output, n_threads = tmp_path_factory.mktemp("alone") / "out.mp4", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with LipSync.load("tiny", RUNTIME) as sync:
            sync_in_segments([sync], sample.VIDEO, speech, output, SETTINGS, segment_s=0.6)
    finally:
        torch.set_num_threads(n_threads)
    assert len(read_images(output)) == N_FRAMES
    return output.read_bytes()


def in_segments(cluster: Cluster, speech: Path, tmp_path: Path, **more: Any) -> Any:
    inputs = probe_inputs(sample.VIDEO, speech, tmp_path / "out.mp4", overwrite=False)
    defaults: dict[str, Any] = {"faces": None, "overwrite": False, "on_progress": None, "cancel": None}
    return run_in_segments(
        cluster,
        inputs,
        tmp_path / "out.mp4",
        SETTINGS,
        tmp_path / "work",
        **{"keep_work": False, "segment_s": 0.6, **defaults, **more},
    )


def when(condition: Any, action: Any) -> threading.Thread:
    """Do something, in a thread, once a condition holds."""

    def wait() -> None:
        until_s = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < until_s
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


class Deadly:
    """Ends the process that it is sent to."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


class TestOneCluster:
    """Tests that share a connection: a process has one at a time."""

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
    def test_a_worker_is_killed_in_the_middle_of_a_segment(
        self, cluster: Cluster, speech: Path, alone: bytes, tmp_path: Path
    ) -> None:
        process = next(one.value for one in cluster.run(iter([_Task("", "process", ())])) if one is not None)

        def renders() -> bool:
            with contextlib.suppress(OSError):  # a file that is closed meanwhile
                return any(str(link.readlink()).endswith(".part.mp4") for link in Path(f"/proc/{process}/fd").iterdir())
            return False

        killer = when(renders, lambda: os.kill(process, signal.SIGKILL))
        result = in_segments(cluster, speech, tmp_path)
        killer.join()
        assert (tmp_path / "out.mp4").read_bytes() == alone
        assert (result.frames, result.frames_with_face, result.retries) == (N_FRAMES, N_FRAMES, 1)
        assert not (tmp_path / "work").exists()

    def test_jobs_are_done_and_a_bad_one_is_reported(self, cluster: Cluster, tmp_path: Path) -> None:
        speech = write_speech(tmp_path / "speech.wav", 0.32)
        (tmp_path / "bad.mp4").write_text("text")
        jobs = [
            SyncJob(video, speech, tmp_path / f"{name}.mp4", SETTINGS, name=name)
            for name, video in (("one", sample.VIDEO), ("two", tmp_path / "bad.mp4"), ("three", sample.VIDEO))
        ]
        rows = list(run_batch(jobs, cluster.execute(None), Journal(tmp_path, "key", resume=False)))
        states = {row["name"]: (row["state"], row["frames"], row["error_code"]) for row in rows}
        assert states == {"one": ("done", 8, None), "two": ("failed", None, "input"), "three": ("done", 8, None)}
        assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "three.mp4").read_bytes()

    def test_what_keeps_killing_its_worker_fails(self, cluster: Cluster) -> None:
        tasks = [_Task("deadly", "run_key", (Deadly(),)), _Task("harmless", "process", ())]
        found = {one.tag: one for one in cluster.run(iter(tasks)) if one is not None}
        assert found["harmless"].error is None
        assert "its worker died 4 times" in str(found["deadly"].error)


def test_a_node_is_taken_away(two_nodes: Any, speech: Path, alone: bytes, tmp_path: Path) -> None:
    extra = two_nodes.add_node(num_cpus=1, object_store_memory=80 * MB)
    with Cluster(RaySettings(two_nodes.address, actors=3), "tiny", RUNTIME) as cluster:
        some = lambda: len(list(tmp_path.glob("work/*/pieces/0*.mp4"))) >= 2  # noqa: E731
        remover = when(some, lambda: two_nodes.remove_node(extra))
        result = in_segments(cluster, speech, tmp_path, keep_work=True)
        remover.join()
    assert (tmp_path / "out.mp4").read_bytes() == alone
    assert result.frames == N_FRAMES
    assert len(list(tmp_path.glob("work/*/pieces/0*.mp4"))) == 5


def test_a_cluster_that_does_not_fit_is_refused(
    two_nodes: Any, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "__version__", "99.0")
        with pytest.raises(SettingsError, match=r"node .* has lipstream 0.*, and this machine 99.0"):
            Cluster(RaySettings(two_nodes.address), "tiny", RUNTIME)
    assert not ray.is_initialized()
    with Cluster(RaySettings(two_nodes.address), "tiny", RUNTIME), pytest.raises(InputError, match="does not see it"):
        ray_nodes.check_seen([sample.VIDEO, tmp_path / "elsewhere"])


def test_an_address_without_a_cluster_is_refused(speech: Path, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = ("sync", sample.VIDEO, speech, "-o", tmp_path / "out.mp4", "--ray")
    assert "no Ray cluster answers there" in error_line(run(*words, f"127.0.0.1:{port}"), 2)
    assert "is not the address of a cluster" in error_line(run(*words, "nowhere"), 2)
    assert "--ray: each worker has one device" in error_line(run(*words, "local", "--device", "cpu,cpu"), 2)


def test_the_command_line_with_a_cluster_of_its_own(speech: Path, alone: bytes, tmp_path: Path) -> None:
    words = ("sync", sample.VIDEO, speech, "-o", tmp_path / "out.mp4", "--ray", "local", "--ray-actors", "2")
    fast = (
        "--crf",
        "10",
        "--x264-preset",
        "ultrafast",
        "--detector",
        "mediapipe",
        "--device",
        "cpu",
        "--segment",
        "0.6",
    )
    done = run(*words, *fast)
    assert done.returncode == 0, done.stderr
    (tmp_path / "alone.mp4").write_bytes(alone)
    pairs = zip(read_images(tmp_path / "out.mp4"), read_images(tmp_path / "alone.mp4"), strict=True)
    assert min(psnr_db(one, other) for one, other in pairs) > 40  # its workers may have more threads
