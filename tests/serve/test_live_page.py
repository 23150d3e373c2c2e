"""The live page in a real Chromium without a window: pictures, sound, microphone, interruption, what goes wrong."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the extra live is not installed")

from helpers.browser import chromium
from helpers.live import MOUTH, SIDE, DrawnSession, tone
from helpers.live_server import serving_live
from helpers.media import write_wav
from helpers.pipeline import write_clip
from helpers.service import until
from lipstream import LipSync, read_frames
from lipstream.bundled import sample
from lipstream.errors import OutOfMemoryError
from lipstream.serve.live import speech

FLAGS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)

# What is in the mouth's place and what the sound is like, now and over a while.
WATCH = """([top, bottom, left, right, side, ms]) => new Promise((done) => {
  const video = document.querySelector('#face'), canvas = new OffscreenCanvas(side, side);
  const drawing = canvas.getContext('2d', {willReadFrequently: true});
  window.sound ??= (() => {
    const context = new AudioContext(), analyser = context.createAnalyser();
    context.createMediaStreamSource(video.srcObject).connect(analyser);
    return {analyser, samples: new Float32Array(analyser.fftSize)};
  })();
  const seen = {mouths: [], levels: [], brightest: 0, times: [], clock: []}, begun = performance.now();
  const look = () => {
    drawing.drawImage(video, 0, 0, side, side);
    const all = drawing.getImageData(0, 0, side, side).data;
    let dark = 0;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) dark += all[4 * (y * side + x)] < 130;
    sound.analyser.getFloatTimeDomainData(sound.samples);
    seen.mouths.push(dark);
    seen.levels.push(Math.max(...sound.samples.map(Math.abs)));
    seen.brightest = Math.max(seen.brightest, all[4 * (4 * side + 4)]);
    seen.times.push(video.currentTime);
    seen.clock.push(performance.now());
    if (performance.now() - begun > ms) done(seen); else setTimeout(look, 40);
  };
  look();
})"""

# The green of two parts of the picture, the mouth and a corner, over a while.
WATCH_PARTS = """(ms) => new Promise((done) => {
  const video = document.querySelector('#face'), canvas = new OffscreenCanvas(128, 128), seen = [[], []];
  const drawing = canvas.getContext('2d', {willReadFrequently: true}), begun = performance.now();
  const look = () => {
    drawing.drawImage(video, 0, 0, 128, 128);
    [[54, 50, 24, 12], [0, 0, 24, 12]].forEach((box, part) =>
      seen[part].push(Array.from(drawing.getImageData(...box).data).filter((_, at) => at % 4 === 1)));
    if (performance.now() - begun > ms) done(seen); else setTimeout(look, 40);
  };
  look();
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(FLAGS) as launched:
        yield launched


@contextmanager
def opened(browser: Any, client: httpx.Client) -> Iterator[Any]:
    """Yield the page; nothing may be asked of another machine, and no script may fail."""
    context = browser.new_context(permissions=["microphone"])
    context.set_default_timeout(60_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda one: None if one.url.startswith((str(client.base_url), "data:")) else problems.append(one.url)
    )
    page.goto(f"{client.base_url}/")
    yield page
    context.close()
    assert problems == []


def start(page: Any) -> None:
    page.click("#start")
    plays(page)


def plays(page: Any) -> None:
    wait_for(page, "state", "Ready")
    until(lambda: page.evaluate("document.querySelector('#face').currentTime > 0.2"))


def wait_for(page: Any, place: str, text: str) -> None:
    # Not page.wait_for_function, whose polling the page's Content-Security-Policy refuses.
    until(lambda: text in page.evaluate(f"document.getElementById('{place}').textContent"))


def watch(page: Any, seconds: float) -> dict[str, Any]:
    rows, columns = MOUTH
    return page.evaluate(WATCH, [rows.start, rows.stop, columns.start, columns.stop, SIDE, 1000 * seconds])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Return a file of half a second of a tone, as long a pause, and the tone again."""
    part = tone(0.5, 16000)[:, 0]
    return write_wav(tmp_path / "speech.wav", np.concatenate([part, np.zeros(8000, np.int16), part]), 16000)


def test_every_file_that_the_page_names_is_served(tmp_path: Path) -> None:
    with serving_live(tmp_path) as client:
        names = re.findall(r'(?:href|src)="([^"]+)"', client.get("/").text)
        assert "icon.svg" in names
        assert [client.get(f"/{name}").status_code for name in names] == [200] * len(names)


def test_a_recording_is_said_by_the_face(browser: Any, tmp_path: Path, recording: Path) -> None:
    with serving_live(tmp_path) as client, opened(browser, client) as page:
        assert page.inner_text("#mark") == "AI-generated"
        assert "made by AI" in page.inner_text("header")
        start(page)
        assert page.evaluate("document.querySelector('#face').srcObject.getTracks().map((one) => one.kind).sort()") == [
            "audio",
            "video",
        ]
        idle = watch(page, 1.0)
        assert idle["times"][-1] > idle["times"][0] + 0.5  # it plays
        assert idle["brightest"] > 150  # skin
        assert max(idle["mouths"]) < 100 and max(idle["levels"]) < 0.01
        page.set_input_files("#recording", str(recording))
        wait_for(page, "state", "Speaking")
        spoken = watch(page, 2.5)
        assert max(spoken["mouths"]) > 400 and max(spoken["levels"]) > 0.2
        # The mouth opens and closes with the sound, but for the delays of the two decoders and of a busy machine.
        is_open, is_loud = (np.array(spoken[one]) > least for one, least in (("mouths", 300), ("levels", 0.1)))
        for end in (0, -1):
            apart_ms = spoken["clock"][np.flatnonzero(is_open)[end]] - spoken["clock"][np.flatnonzero(is_loud)[end]]
            assert abs(apart_ms) < 400
        wait_for(page, "state", "Ready")
        page.click("#stop")
        wait_for(page, "state", "Not connected")
        until(lambda: client.get("/api/live").json()["sessions"] == 0)


def test_text_is_said_and_interrupted(browser: Any, tmp_path: Path) -> None:
    if not speech.can_read_text():
        pytest.skip("espeak-ng is not installed")
    sessions: list[DrawnSession] = []

    def new_session() -> DrawnSession:
        sessions.append(DrawnSession())
        return sessions[-1]

    with serving_live(tmp_path, new_session) as client, opened(browser, client) as page:
        start(page)
        page.fill("#text", "one two three four five six seven eight nine ten " * 10)
        page.click("#say")
        wait_for(page, "state", "Speaking")
        assert max(watch(page, 1.5)["mouths"]) > 200
        page.click("#interrupt")
        wait_for(page, "state", "Ready")
        time.sleep(0.5)
        silent = watch(page, 1.0)
        assert max(silent["mouths"]) < 100 and max(silent["levels"]) < 0.01
        assert sessions[0].n_interrupts == 1
        n_pushed = sum(shape[0] for _, shape in sessions[0].pushed)
        page.fill("#text", "And on.")
        page.click("#say")
        wait_for(page, "state", "Speaking")
        wait_for(page, "state", "Ready")
        assert sum(shape[0] for _, shape in sessions[0].pushed) > n_pushed


def test_the_microphone_is_said_while_it_is_on(browser: Any, tmp_path: Path) -> None:
    sessions: list[DrawnSession] = []

    def new_session() -> DrawnSession:
        sessions.append(DrawnSession())
        return sessions[-1]

    with serving_live(tmp_path, new_session) as client, opened(browser, client) as page:
        start(page)
        page.click("#microphone")
        wait_for(page, "state", "Speaking")
        assert page.get_attribute("#microphone", "aria-pressed") == "true"
        beeps = watch(page, 3.0)  # Chromium's own microphone beeps each second
        assert max(beeps["levels"]) > 0.05 and max(beeps["mouths"]) > 150
        rates = {(rate, len(shape)) for rate, shape in sessions[0].pushed}
        assert rates == {(48000, 2)}
        page.click("#microphone")
        wait_for(page, "state", "Ready")
        assert page.get_attribute("#microphone", "aria-pressed") == "false"
        n_pushed = len(sessions[0].pushed)
        time.sleep(0.5)
        assert len(sessions[0].pushed) == n_pushed


def test_what_goes_wrong_is_said_on_the_page(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "none.wav").write_bytes(b"no sound" * 100)
    sessions = iter([DrawnSession(error=OutOfMemoryError("too little memory", fix="close others"), fails_after=50)])
    with serving_live(tmp_path, lambda: next(sessions), max_sessions=1) as client:
        with opened(browser, client) as page, opened(browser, client) as other:
            start(page)
            page.set_input_files("#recording", str(tmp_path / "none.wav"))
            wait_for(page, "said", "not a media file of a known kind")
            other.click("#start")
            wait_for(other, "said", "somebody else is talking with it: try again later")
            wait_for(page, "said", "too little memory: close others")
            wait_for(page, "state", "Not connected")
            assert page.is_enabled("#start")
        until(lambda: client.get("/api/live").json()["sessions"] == 0)


def test_a_reload_takes_its_own_place_and_a_lost_session_is_begun_again(browser: Any, tmp_path: Path) -> None:
    with serving_live(tmp_path, max_sessions=1) as client, opened(browser, client) as page:
        start(page)
        page.reload()
        start(page)
        assert client.get("/api/live").json()["sessions"] == 1
        page.evaluate("fetch('api/live/' + sessionStorage.getItem('lipstream-live'), {method: 'DELETE'})")
        wait_for(page, "said", "trying again")
        plays(page)
        assert client.get("/api/live").json()["sessions"] == 1


def test_a_visit_ends_in_time(browser: Any, tmp_path: Path) -> None:
    with serving_live(tmp_path, max_time="4s") as client, opened(browser, client) as page:
        page.click("#start")
        wait_for(page, "said", "the time for a visit is over")
        wait_for(page, "state", "Not connected")


@pytest.mark.timeout(600)
def test_the_bundled_model_speaks(browser: Any, tmp_path: Path) -> None:
    if os.getloadavg()[0] > 3 * (os.cpu_count() or 1):
        pytest.skip("the machine is too busy to generate pictures in real time")
    picture = next(iter(read_frames(sample.VIDEO))).image
    clip = write_clip(tmp_path / "still.mp4", [picture] * 25)
    with LipSync.load("tiny", device="cpu", detector="mediapipe", threads=2) as sync:
        avatar = sync.prepare_avatar(clip, tmp_path / "still.avatar")
        sessions = serving_live(tmp_path, lambda: sync.live(avatar), side=avatar.width)
        with sessions as client, opened(browser, client) as page:
            start(page)
            time.sleep(2)  # the encoder's first pictures are coarse
            idle = parts(page, 1.5)
            before = [part.mean(0) for part in idle]
            still = max(changes(idle, before))

            def mouth_moves() -> bool:
                if "Ready" in page.inner_text("#state"):
                    page.set_input_files("#recording", str(sample.SPEECH))
                mouth, corner = changes(parts(page, 1.0), before)
                return mouth > 6 and mouth > 4 * max(still, corner)

            until(mouth_moves, 180)  # on a busy machine few pictures are generated, and the rest are held
            page.click("#interrupt")
            wait_for(page, "state", "Ready")
            page.click("#stop")
            until(lambda: client.get("/api/live").json()["sessions"] == 0)


def changes(seen: list[np.ndarray], before: list[np.ndarray]) -> tuple[float, float]:
    """Return how far the mouth and the corner are at most from what they were: mean of the pixels."""
    mouth, corner = (float(np.abs(part - mean).mean(1).max()) for part, mean in zip(seen, before, strict=True))
    return mouth, corner


def parts(page: Any, seconds: float) -> list[np.ndarray]:
    """Return the mouth and a corner over a while: (times, pixels) each."""
    return [np.array(part, float) for part in page.evaluate(WATCH_PARTS, 1000 * seconds)]
