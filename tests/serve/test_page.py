"""The page in a real Chromium without a window, and what it asks the server."""

from __future__ import annotations

import http.server
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra web is not installed")

from helpers.browser import chromium
from helpers.media import write_wav
from helpers.pipeline import write_clip, write_speech
from helpers.service import FakeRender, serving, until
from lipstream.bundled import sample
from lipstream.errors import NoFaceError
from lipstream.media.reader import read_frames
from lipstream.results import Progress, SyncResult
from lipstream.serve.render import ModelRenderer, Work
from lipstream.serve.service import JobRequest, Service
from lipstream.settings import RuntimeSettings, SyncSettings

# Gradio's own figures of its queue meet warnings of pandas.
pytestmark = pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword).*")

HERE = "127.0.0.1"


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.sqlite'}"


class Rendered(FakeRender):
    """Gives back the sample's video, of which some frames are said to have no face."""

    def __init__(self, duration_s: float = 0.0, error: Exception | None = None) -> None:
        super().__init__(duration_s, error, sample.VIDEO.read_bytes())

    def __call__(self, work: Work, on_progress: Callable[[Progress], None], cancel: threading.Event) -> SyncResult:
        done = super().__call__(work, on_progress, cancel)
        return SyncResult(done.output, 125, 5.0, 1.0, 0.2, done.stages, 100, 25, {}, 0, ((50, 74),))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium(["--no-sandbox", "--mute-audio"]) as launched:
        yield launched


@contextmanager
def opened(browser: Any, client: httpx.Client, **options: Any) -> Iterator[Any]:
    """Yield the page, loaded; nothing may be asked of another machine, and no script may fail."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(120_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if is_here(request.url) else problems.append(request.url))
    page.goto(str(client.base_url.copy_with(path="/")))
    page.wait_for_selector("#go")
    yield page
    context.close()
    assert problems == []


def is_here(url: str) -> bool:
    return url.startswith(("data:", "blob:")) or httpx.URL(url).host == HERE


def fill(page: Any, video: Path = sample.VIDEO, speech: Path = sample.SPEECH) -> None:
    page.set_input_files("#video input[type=file]", str(video))
    page.wait_for_selector("#video video")
    page.set_input_files("#speech input[type=file]", str(speech))
    page.wait_for_selector("#speech #duration")


def begin(page: Any, video: Path = sample.VIDEO, speech: Path = sample.SPEECH) -> None:
    fill(page, video, speech)
    page.click("#consent label")
    page.click("#go")


def states(page: Any) -> dict[str, Any]:
    return page.evaluate(
        """() => { const [after, before] = document.querySelectorAll('#ls-result video'); return {
        after: after.currentTime, before: before.currentTime, paused: after.paused, ready: before.readyState}; }"""
    )


@pytest.mark.timeout(600)
def test_a_first_visitor_has_a_playing_result_after_three_clicks(browser: Any, service: Service) -> None:
    render = ModelRenderer(service.settings.models, RuntimeSettings(device="cpu", detector="mediapipe", threads=2))
    with serving(service, render) as client, opened(browser, client) as page:
        page.click("#sample")
        page.click("#consent label")
        page.wait_for_selector(".ls-seen .ls-face")
        page.wait_for_selector("#speech #duration")
        assert "512 × 512 pixels, 5.0 s, 25 frames a second" in page.inner_text("#facts")
        page.click("#go")
        page.wait_for_selector("#ls-progress")
        page.wait_for_selector("#ls-result", timeout=400_000)
        first = until(lambda: (now := states(page))["after"] > 0.5 and now, 60)
        assert not first["paused"] and first["ready"] >= 2
        assert abs(first["after"] - first["before"]) < 0.25
        page.click("#ls-result summary")
        assert "Frames\n125" in page.inner_text("#ls-result")
        with page.expect_download() as download:
            page.click("#ls-result a[download]")
        assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"


def test_progress_place_in_the_queue_and_cancel(browser: Any, service: Service) -> None:
    render = Rendered(duration_s=60)
    with serving(service, render) as client, opened(browser, client) as page:
        begin(page)
        page.wait_for_function(
            "document.querySelector('#ls-progress .ls-detail')?.textContent.includes('of 10 frames')"
        )
        assert page.get_attribute("#ls-progress [role=progressbar]", "aria-valuetext").startswith("0 of 10")
        with opened(browser, client) as other:
            begin(other)
            other.wait_for_function("document.querySelector('#ls-progress .ls-line')?.textContent.includes('Waiting')")
            assert "yours is next" in other.inner_text("#ls-progress")
            other.click("#ls-progress button")
            other.wait_for_function("document.querySelector('#ls-progress')?.textContent.includes('Cancelled')")
        page.click("#ls-progress button")
        page.wait_for_function("document.querySelector('#ls-progress')?.textContent.includes('Cancelled')")
        jobs = client.get("/jobs").json()["jobs"]
        assert [job["state"] for job in jobs] == ["cancelled", "cancelled"]
        page.click("#ls-progress button")
        page.wait_for_selector("#ls-progress", state="detached")


def test_a_reload_in_the_middle_goes_on(browser: Any, service: Service) -> None:
    with serving(service, Rendered(duration_s=6)) as client, opened(browser, client) as page:
        begin(page)
        page.wait_for_selector("#ls-progress")
        page.reload()
        page.wait_for_selector("#ls-progress")
        page.wait_for_selector("#ls-result")
        assert len(client.get("/jobs").json()["jobs"]) == 1
        page.reload()
        page.wait_for_selector("#ls-result")
        assert page.is_checked("#consent input")  # for the rest of the visit


def test_what_is_missing_or_wrong_is_said_where_the_eye_is(browser: Any, service: Service, tmp_path: Path) -> None:
    render = Rendered(error=NoFaceError("no usable face in the 125 frames searched", fix="use another video"))
    silent = write_wav(tmp_path / "silent.wav", np.zeros(16000, np.int16), 16000)
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    faceless = write_clip(tmp_path / "faceless.mp4", [np.full((128, 128, 3), 90, np.uint8)] * 5)
    with serving(service, render) as client, opened(browser, client) as page:
        page.click("#go")
        page.wait_for_selector("#said [role=alert]")
        assert page.inner_text("#said") == "Choose a video and a recording first."
        fill(page, faceless, silent)
        page.wait_for_selector("#about-video [role=alert]")
        assert "No face was found" in page.inner_text("#about-video")
        page.wait_for_selector("#about-speech [role=alert]")
        assert "recording is silent" in page.inner_text("#about-speech")
        page.click("#go")
        page.wait_for_function("document.querySelector('#said').innerText.includes('tick the box')")
        page.click("#consent label")
        page.click("#video button[aria-label=Clear]")
        page.set_input_files("#video input[type=file]", str(tmp_path / "broken.mp4"))
        page.wait_for_function("document.querySelector('#about-video').textContent.includes('media file')")
        page.click("#video button[aria-label=Clear]")
        page.set_input_files("#video input[type=file]", str(sample.VIDEO))
        page.wait_for_selector(".ls-seen .ls-face")
        page.click("#go")
        page.wait_for_selector("#ls-progress [role=alert]")
        assert page.inner_text("#ls-progress [role=alert]").startswith("No usable face in the 125 frames searched.")
        assert "Use another video." in page.inner_text("#ls-progress")


def test_another_person_is_chosen_in_the_picture(browser: Any, service: Service, tmp_path: Path) -> None:
    images = [np.concatenate([one.image, one.image], 1) for one in itertools.islice(read_frames(sample.VIDEO), 3)]
    two = write_clip(tmp_path / "two.mp4", images)
    with serving(service, Rendered()) as client, opened(browser, client) as page:
        fill(page, two, write_speech(tmp_path / "speech.wav", 1.0))
        page.wait_for_selector("button.ls-face >> nth=1")
        boxes = page.locator("button.ls-face")
        lefts = [boxes.nth(i).bounding_box()["x"] for i in range(2)]
        right = lefts.index(max(lefts))
        boxes.nth(right).click()
        page.wait_for_function(f"document.querySelectorAll('button.ls-face')[{right}].ariaPressed === 'true'")
        page.click("#consent label")
        page.click("#go")
        page.wait_for_selector("#ls-result")
        x = float(client.get("/jobs").json()["jobs"][0]["settings"]["face"].split(",")[0])
        assert 512 < x < 1024


def test_advanced_settings_reach_the_job(browser: Any, service: Service) -> None:
    with serving(service, Rendered()) as client, opened(browser, client) as page:
        fill(page)
        page.click("#more button")
        page.fill("#num_inference_steps textarea, #num_inference_steps input", "7")
        page.fill("#guidance_interval textarea, #guidance_interval input", "0, 0.5")
        page.check("#strip_metadata input")
        page.click("#preset label >> nth=2")
        page.click("#consent label")
        page.click("#go")
        page.wait_for_selector("#ls-result")
        settings = client.get("/jobs").json()["jobs"][0]["settings"]
        wanted = SyncSettings(
            preset="fast", num_inference_steps=7, guidance_interval=(0, 0.5), strip_metadata=True
        ).to_dict()
        assert settings == wanted
        page.fill("#num_inference_steps textarea, #num_inference_steps input", "many")
        page.click("#go")
        page.wait_for_selector("#said [role=alert]")
        assert "num_inference_steps" in page.inner_text("#said")


def test_the_page_fits_a_phone(browser: Any, service: Service) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
    with serving(service, Rendered()) as client, opened(browser, client, **phone) as page:
        page.click("#more button")
        begin(page)
        page.wait_for_selector("#ls-result")
        page.click("#ls-result summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator(".ls-stage").bounding_box()["width"] <= 360


def test_light_and_dark(browser: Any, service: Service) -> None:
    shade = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    with serving(service, Rendered()) as client:
        for scheme in ("light", "dark"):
            with opened(browser, client, color_scheme=scheme) as page:
                page.wait_for_function(f"({shade}).every((one) => one {'<' if scheme == 'dark' else '>'} 128)")


def test_the_keyboard_suffices(browser: Any, service: Service) -> None:
    with serving(service, Rendered()) as client, opened(browser, client, reduced_motion="reduce") as page:

        def tab_to(selector: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                    return
            raise AssertionError(f"no Tab leads to {selector}")

        tab_to("#sample")
        page.keyboard.press("Enter")
        page.wait_for_selector(".ls-seen .ls-face")
        page.wait_for_selector("#speech #duration")
        tab_to("#consent input")
        page.keyboard.press("Space")
        tab_to("#go")
        page.keyboard.press("Enter")
        page.wait_for_selector("#ls-result")
        page.wait_for_function("document.querySelector('.ls-after').readyState >= 2")
        assert states(page)["paused"]  # where less motion is wanted, nothing starts by itself
        tab_to(".ls-divider")
        page.keyboard.press("ArrowRight")
        assert page.input_value(".ls-divider") == "51"
        tab_to(".ls-play")
        page.keyboard.press("Enter")
        page.wait_for_function("!document.querySelector('.ls-after').paused")
        tab_to(".ls-position")
        page.keyboard.press("End")
        page.wait_for_function("document.querySelector('.ls-after').currentTime > 4")


def test_everything_has_a_name_for_screen_readers(browser: Any, service: Service) -> None:
    nameless = """() => [...document.querySelectorAll('button, input, textarea, a, [role=button]')].filter((one) =>
        one.checkVisibility() && one.type !== 'file' && !(one.ariaLabel || one.textContent.trim() || one.title
        || one.labels?.length || one.closest('label'))).map((one) => one.outerHTML.slice(0, 200))"""
    with serving(service, Rendered()) as client, opened(browser, client) as page:
        page.click("#more button")
        begin(page)
        page.wait_for_selector("#ls-result")
        assert page.evaluate(nameless) == []
        said = "left as filmed: 0:02.0 to 0:03.0"  # once the time line has been fetched
        page.wait_for_function("said => document.querySelector('#ls-result').innerText.includes(said)", arg=said)


def root(client: httpx.Client) -> httpx.Client:
    return httpx.Client(base_url=client.base_url.copy_with(path="/"), timeout=30)


def test_the_original_in_parts_and_the_timeline(service: Service) -> None:
    with serving(service, Rendered()) as client, root(client) as page:
        job = service.submit(JobRequest(), sample.VIDEO, sample.SPEECH, HERE)
        until(lambda: service.job(job.id).has_ended)
        part = page.get(f"/page/jobs/{job.id}/original", headers={"range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert page.get(f"/page/jobs/{job.id}/original").content == sample.VIDEO.read_bytes()
        timeline = page.get(f"/page/jobs/{job.id}/timeline").json()
        assert timeline["without_face"] == [[2.0, 3.0]] and max(timeline["peaks"]) == 1.0
        foreign = service.submit(JobRequest(), sample.VIDEO, sample.SPEECH, "somebody else")
        assert page.get(f"/page/jobs/{foreign.id}/original").status_code == 404
        assert page.get(f"/page/jobs/{foreign.id}/timeline").status_code == 404
        assert page.get("/page/../../settings.js").status_code == 404
        service.delete(job.id)
        assert page.get(f"/page/jobs/{job.id}/original").status_code == 404


def test_no_address_and_no_path_of_a_visitor_is_followed(service: Service, tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: Any) -> None:
            pass

    elsewhere = http.server.ThreadingHTTPServer((HERE, 0), Handler)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(sample.VIDEO.read_bytes())
    address = f"http://{HERE}:{elsewhere.server_port}/video.mp4"
    with serving(service, Rendered()) as client, root(client) as page:
        config = page.get("/config").json()
        ids = {one["props"].get("elem_id"): one["id"] for one in config["components"]}
        change = next(one for one in config["dependencies"] if [ids["video"], "change"] in map(list, one["targets"]))
        for file in (
            {"path": address},
            {"path": str(secret), "url": address},
            {"path": str(secret)},
            {"path": str(secret), "is_stream": True},
            {"path": "x.mp4", "url": address},
        ):
            data = [{**file, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "exact"]
            body = {"fn_index": change["id"], "data": data, "session_hash": "abc", "event_data": None}
            joined = page.post("/gradio_api/queue/join", json=body)
            if joined.status_code != 200:
                continue
            with page.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abc"}) as events:
                text = next((line for line in events.iter_lines() if "process_completed" in line), "")
            assert '"success":false' in text.replace(" ", ""), text
        assert page.get(f"/gradio_api/file={secret}").status_code in (403, 404)
    time.sleep(0.2)
    elsewhere.shutdown()
    elsewhere.server_close()
    assert asked == []
