"""What the page says of a video and a recording before any work, in plain words."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from lipstream.errors import LipstreamError
from lipstream.media.audio import SpeechInfo
from lipstream.media.reader import VideoInfo
from lipstream.serve.inspect import inspect_speech, inspect_video, is_silent
from lipstream.serve.page.look_at import Seen, look_at
from lipstream.serve.service import Service
from lipstream.serve.states import State
from lipstream.serve.tables import jobs

_RUNS = 20
"""How many of the last runs say how long the next one will take."""


@dataclass(frozen=True)
class Understood:
    """What is shown: below the video, below the recording, and what was seen. Errors are marked as such."""

    video: str
    speech: str
    facts: str
    seen: Seen | None


def understand(
    service: Service, video: str | None, speech: str | None, model: str, preset: str, track: int | None = None
) -> Understood:
    """Look at what there is of the two files; each may be missing."""
    about_video = about_speech = facts = ""
    seen: Seen | None = None
    picture: VideoInfo | None = None
    sound: SpeechInfo | None = None
    if video:
        try:
            picture = inspect_video(Path(video), service.settings)
            seen = look_at(picture)
        except LipstreamError as error:
            about_video = _alert(error)
    if speech:
        try:
            sound = inspect_speech(Path(speech), track, service.settings.max_duration_s)
        except LipstreamError as error:
            about_speech = _alert(error)
    if picture is not None and seen is not None and not seen.faces:
        about_video = _said(
            f"No face was found in the first {seen.searched_s:.0f} seconds. One is needed that looks towards the camera"
            " and is at least 50 pixels wide."
        )
    if sound is not None and is_silent(sound):
        about_speech = _said("This recording is silent. Record it again, or check the microphone.")
    if picture is not None and seen is not None:
        facts = _facts(service, picture, seen, sound, model, preset)
    return Understood(about_video, about_speech, facts, seen)


def _facts(service: Service, picture: VideoInfo, seen: Seen, sound: SpeechInfo | None, model: str, preset: str) -> str:
    rate_hz = float(picture.nominal_rate)
    rows = [("Video", f"{picture.width} × {picture.height} pixels{_length(picture.duration_s)}{_rate(rate_hz)}")]
    if sound is not None:
        speech_s = float(sound.duration_s)
        rows.append(("Speech", f"{speech_s:.1f} s, which is how long the result will be"))
        rows.append(("Time it takes", _time(service, speech_s, model, preset)))
    else:
        rows.append(("Speech", "not chosen yet"))
    words = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in rows)
    return f'<div class="ls-seen">{_frame(seen)}<dl class="ls-facts">{words}</dl></div>'


def _frame(seen: Seen) -> str:
    """Return the picture with the faces in it: to be chosen from where there are several."""
    boxes = []
    for number, face in enumerate(seen.faces, 1):
        place = "".join(
            f"{name}:{100 * share:.2f}%;"
            for name, share in (("left", face.left), ("top", face.top), ("width", face.width), ("height", face.height))
        )
        if len(seen.faces) == 1:
            boxes.append(f'<span class="ls-face" style="{place}"></span>')
        else:
            boxes.append(
                f'<button type="button" class="ls-face" style="{place}" data-face="{number - 1}"'
                f' aria-pressed="{str(number == 1).lower()}" aria-label="Person {number}"><b>{number}</b></button>'
            )
    caption = {0: "No face was found.", 1: "The marked face will be changed."}.get(
        len(seen.faces), f"{len(seen.faces)} people were found. Click on the one to change."
    )
    image = f'<img src="{seen.picture}" alt="a frame of the video">' if seen.picture else ""
    return f'<figure><div class="ls-frame">{image}{"".join(boxes)}</div><figcaption>{caption}</figcaption></figure>'


def _length(duration_s: float | None) -> str:
    return "" if not duration_s else f", {duration_s:.1f} s"


def _rate(rate_hz: float) -> str:
    return f", {rate_hz:.4g} frames a second" if rate_hz else ""


def _time(service: Service, speech_s: float, model: str, preset: str) -> str:
    factor = _real_time_factor(service, model, preset)
    waiting = _n_waiting(service)
    queue = f", after the {waiting} that wait{'s' if waiting == 1 else ''}" if waiting else ""
    if factor is None:
        return f"not known before the first run here{queue}"
    return f"about {_duration(max(1.0, factor * speech_s))}, as the last runs here took{queue}"


def _real_time_factor(service: Service, model: str, preset: str) -> float | None:
    """Return how many seconds the last runs took for a second of result; None where there was none."""
    done = jobs.c.state.in_([State.DONE.value, State.EXPIRED.value])
    rows = select(jobs.c.result, jobs.c.settings).where(done, jobs.c.model == model, jobs.c.result.is_not(None))
    with service.database.reading() as connection:
        found = connection.execute(rows.order_by(jobs.c.number.desc()).limit(_RUNS)).all()
    results = [result for result, settings in found if result and settings.get("preset") == preset]
    made_s = sum(result["duration_s"] for result in results)
    return sum(result["wall_s"] for result in results) / made_s if made_s else None


def _n_waiting(service: Service) -> int:
    """Return how many jobs wait."""
    with service.database.reading() as connection:
        waiting = select(func.count()).where(jobs.c.state == State.QUEUED.value)
        return int(connection.scalar(waiting) or 0)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _alert(error: LipstreamError) -> str:
    fix = f" {error.fix[0].upper()}{error.fix[1:]}." if error.fix else ""
    message = error.message.removeprefix("video: ").removeprefix("recording: ")
    return _said(f"{message[0].upper()}{message[1:]}.{fix}")


def _said(text: str) -> str:
    return f'<p class="ls-error" role="alert">{html.escape(text)}</p>'
