"""What the live page asks its server for, with aiortc as the visitor; the command as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the extra live is not installed")

import aiortc

from helpers.live import DrawnSession, tone
from helpers.live_server import serving_live
from helpers.media import write_wav
from helpers.service import until
from lipstream.errors import OutOfMemoryError
from lipstream.serve.database import Database
from lipstream.serve.live import speech
from lipstream.serve.live.settings import LivePageSettings
from lipstream.serve.live.tracks import PictureTrack, SoundTrack
from lipstream.serve.tokens import add_token

HELPERS = Path(__file__).parents[1]
NOWHERE = "A" * 22


class Visitor:
    """A peer that asks for pictures and sound, and counts what comes."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.peer = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.frames: dict[str, list[Any]] = {"audio": [], "video": []}
        self.events: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.id = ""

    async def offer(self) -> str:
        self.peer.addTransceiver("audio", "sendrecv")
        self.peer.addTransceiver("video", "recvonly")
        self.peer.createDataChannel("events").on("message", self.events.append)
        self.peer.on("track", lambda track: self.tasks.append(asyncio.ensure_future(self._keep(track))))
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return str(self.peer.localDescription.sdp)

    async def connect(self, **more: Any) -> httpx.Response:
        given = {"sdp": await self.offer(), **more}
        answer = await asyncio.to_thread(self.client.post, "/api/live", json=given)
        if answer.status_code == 201:
            self.id = answer.json()["id"]
            await self.peer.setRemoteDescription(aiortc.RTCSessionDescription(answer.json()["sdp"], "answer"))
        return answer

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await asyncio.to_thread(self.client.request, method, f"/api/live/{self.id}{path}", **options)

    async def _keep(self, track: Any) -> None:
        try:
            while True:
                self.frames[track.kind].append(await track.recv())
        except aiortc.mediastreams.MediaStreamError:
            return

    async def until(self, condition: Callable[[], Any]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.02)

        await asyncio.wait_for(wait(), 30)

    async def close(self) -> None:
        await self.peer.close()
        for task in self.tasks:
            task.cancel()


def visiting(client: httpx.Client, visit: Callable[[Visitor], Awaitable[None]]) -> None:
    async def run() -> None:
        visitor = Visitor(client)
        try:
            await visit(visitor)
        finally:
            await visitor.close()

    asyncio.run(run())


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_pictures_and_sound_come_together_and_end_together(tmp_path: Path) -> None:
    said = write_wav(tmp_path / "speech.wav", tone(0.6, 16000)[:, 0], 16000)
    sessions: list[DrawnSession] = []

    def new_session() -> DrawnSession:
        sessions.append(DrawnSession())
        return sessions[-1]

    async def visit(visitor: Visitor) -> None:
        assert (await visitor.connect()).status_code == 201
        await visitor.until(lambda: len(visitor.frames["video"]) > 10)
        answer = await visitor.ask("POST", "/recording", content=said.read_bytes())
        assert (answer.status_code, answer.json()["duration_s"]) == (202, pytest.approx(0.6, abs=0.01))
        await visitor.until(lambda: '{"speaking": true}' in visitor.events)
        await visitor.until(lambda: visitor.events[-1] == '{"speaking": false}')
        loud = [np.abs(frame.to_ndarray()).max() > 3000 for frame in visitor.frames["audio"]]
        assert sum(loud) * 0.02 == pytest.approx(0.6, abs=0.1)
        times = {kind: [float(one.pts * one.time_base) for one in frames] for kind, frames in visitor.frames.items()}
        assert times["video"][-1] - times["video"][0] == pytest.approx(times["audio"][-1] - times["audio"][0], abs=0.5)
        assert (await visitor.ask("DELETE", "")).status_code == 204
        assert error_of(await visitor.ask("POST", "/interrupt")) == (404, "not_found")

    with serving_live(tmp_path, new_session) as client:
        visiting(client, visit)
        assert client.get("/api/live").json()["sessions"] == 0
    assert sessions[0].is_closed


def test_a_full_house_and_the_place_of_a_lost_session(tmp_path: Path) -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.connect()
        other = Visitor(visitor.client)
        refused = await other.connect()
        assert error_of(refused) == (503, "busy") and refused.headers["retry-after"] == "10"
        await other.close()
        again = Visitor(visitor.client)
        assert (await again.connect(replaces=visitor.id)).status_code == 201
        assert error_of(await visitor.ask("POST", "/interrupt")) == (404, "not_found")
        await again.close()

    with serving_live(tmp_path, max_sessions=1) as client:
        visiting(client, visit)
        until(lambda: client.get("/api/live").json()["sessions"] == 0)  # the peer's end was noticed


def test_a_session_that_cannot_be_made_leaves_its_place(tmp_path: Path) -> None:
    def new_session() -> DrawnSession:
        raise OutOfMemoryError("too little memory", fix="close others")

    async def visit(visitor: Visitor) -> None:
        answer = await visitor.connect()
        assert error_of(answer) == (503, "out_of_memory") and answer.json()["error"]["fix"] == "close others"

    with serving_live(tmp_path, new_session) as client:
        visiting(client, visit)
        assert client.get("/api/live").json()["sessions"] == 0


def test_what_is_not_understood_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def visit(visitor: Visitor) -> None:
        await visitor.connect()
        for path, body, expected in (
            ("/text", {"text": "  "}, (422, "text")),
            ("/text", {"text": "a" * 2001}, (422, "text")),
            ("/text", {"words": "a"}, (422, "request")),
            ("/text", {"text": "a" * 200_000}, (413, "too_large")),
            ("/microphone", {"is_on": "perhaps"}, (422, "request")),
        ):
            assert error_of(await visitor.ask("POST", path, json=body)) == expected
        assert error_of(await visitor.ask("POST", "/recording", content=b"")) == (422, "input")
        assert error_of(await visitor.ask("POST", "/recording", content=b"x" * 20_000)) == (413, "too_large")
        wav = write_wav(tmp_path / "long.wav", tone(0.4, 16000)[:, 0], 16000).read_bytes()
        assert error_of(await visitor.ask("POST", "/recording", content=wav)) == (422, "too_long")
        monkeypatch.setattr(speech.shutil, "which", lambda name: None)
        assert error_of(await visitor.ask("POST", "/text", json={"text": "hello"})) == (501, "no_voice")
        await visitor.ask("POST", "/microphone", json={"is_on": True})
        short = write_wav(tmp_path / "short.wav", tone(0.1, 16000)[:, 0], 16000).read_bytes()
        assert error_of(await visitor.ask("POST", "/recording", content=short)) == (409, "microphone")
        await visitor.ask("POST", "/microphone", json={"is_on": False})
        assert (await visitor.ask("POST", "/recording", content=short)).status_code == 202

    with serving_live(tmp_path, max_upload="15KB", max_duration="0.2s") as client:
        for sdp in ("", "nonsense", "v=0\r\n", "m=audio"):
            assert error_of(client.post("/api/live", json={"sdp": sdp})) == (422, "offer")
        assert error_of(client.post(f"/api/live/{NOWHERE}/interrupt")) == (404, "not_found")
        assert client.get("/live.html?name=../app.py").status_code == 404
        page = client.get("/?name=../app.py")
        assert (
            page.text.startswith("<!doctype html>") and "default-src 'self'" in page.headers["content-security-policy"]
        )
        visiting(client, visit)


def test_no_more_than_a_few_speeches_wait(tmp_path: Path) -> None:
    said = write_wav(tmp_path / "speech.wav", tone(20, 8000)[:, 0], 8000).read_bytes()

    async def visit(visitor: Visitor) -> None:
        await visitor.connect()
        codes = [(await visitor.ask("POST", "/recording", content=said)).status_code for _ in range(9)]
        assert codes == [202] * 8 + [429]
        assert (await visitor.ask("POST", "/interrupt")).status_code == 204
        assert (await visitor.ask("POST", "/recording", content=said)).status_code == 202

    with serving_live(tmp_path) as client:
        visiting(client, visit)


def test_a_voice_that_does_not_exist_is_named(tmp_path: Path) -> None:
    if not speech.can_read_text():
        pytest.skip("espeak-ng is not installed")

    async def visit(visitor: Visitor) -> None:
        await visitor.connect()
        answer = await visitor.ask("POST", "/text", json={"text": "-v hello"})
        assert error_of(answer) == (503, "voice") and "--voice" in answer.json()["error"]["fix"]

    with serving_live(tmp_path, voice="nobody") as client:
        visiting(client, visit)


def test_with_tokens_a_visitor_sees_no_other_session(tmp_path: Path) -> None:
    database = Database(LivePageSettings(data=str(tmp_path / "data")).database_url)
    database.migrate()
    tokens = [add_token(database, name) for name in ("one", "two")]
    database.close()

    async def visit(visitor: Visitor) -> None:
        await visitor.connect()
        other = {"authorization": f"Bearer {tokens[1]}"}
        assert error_of(await visitor.ask("POST", "/interrupt", headers=other)) == (404, "not_found")
        assert error_of(await visitor.ask("DELETE", "", headers=other)) == (404, "not_found")
        assert (await visitor.ask("POST", "/interrupt")).status_code == 204

    with serving_live(tmp_path) as client:
        assert error_of(client.get("/api/live")) == (401, "token")
        assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/login"
        assert client.get("/healthz").status_code == 200
        client.headers["authorization"] = f"Bearer {tokens[0]}"
        visiting(client, visit)


def test_pictures_are_dropped_where_they_are_not_taken_and_sound_is_not() -> None:
    async def run() -> None:
        pictures, sounds = PictureTrack(), SoundTrack()
        for at in range(50):
            pictures.put(np.full((16, 16, 3), at, np.uint8), sounds.time_s)
            sounds.put(np.full(640, 0.5, np.float32), 16000)
        assert sounds.time_s == 2
        first = await pictures.recv()
        assert first.pts == 45 * 3600
        taken = [await sounds.recv() for _ in range(98)]
        assert [one.pts for one in taken] == [960 * at for at in range(98)]
        assert all(one.samples == 960 and one.format.name == "s16" for one in taken)
        waiting = asyncio.ensure_future(pictures.recv())
        for _ in range(4):
            await waiting
            waiting = asyncio.ensure_future(pictures.recv())
        await asyncio.sleep(0)
        pictures.stop()
        with pytest.raises(aiortc.mediastreams.MediaStreamError):
            await waiting

    asyncio.run(run())


def test_sound_whose_rate_changes_stays_beside_the_pictures() -> None:
    async def run() -> None:
        sounds = SoundTrack()
        n_out = 0
        for at in range(300):
            rate_hz = (16000, 22050, 44100)[at % 3]
            begin, end = (round(i * rate_hz / 25) for i in (at, at + 1))
            sounds.put(np.full(end - begin, 0.25, np.float32), rate_hz)
            while sounds.n_waiting:
                n_out += (await sounds.recv()).samples
            assert abs(n_out / 48000 - sounds.time_s) < 0.03  # a packet, and what a resampler holds

    asyncio.run(run())


def test_the_command_serves_and_ends_in_order(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "helpers.live_process", "--port", "0", "--data", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    ) as process:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")

        async def visit(visitor: Visitor) -> None:
            await visitor.connect()
            await visitor.until(lambda: len(visitor.frames["video"]) > 3)
            process.send_signal(signal.SIGTERM)
            await visitor.until(lambda: visitor.peer.connectionState == "closed")

        try:
            with httpx.Client(base_url=address, timeout=60) as client:
                visiting(client, visit)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "the model is closed\n"), err
    assert "Traceback" not in err


def test_the_command_refuses_to_let_everybody_in(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "helpers.live_process", "--host", "0.0.0.0", "--data", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])}
    done = subprocess.run(words, capture_output=True, encoding="utf-8", env=environment, timeout=120, check=False)
    assert done.returncode == 2
    assert "is beyond this machine, and there is no token" in done.stderr.splitlines()[-1]
