"""The form: a video and a recording, model, preset and face, consent, one button; the rest is in a fold."""

from __future__ import annotations

import html
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from lipstream.bundled import sample
from lipstream.errors import LipstreamError
from lipstream.presets import PRESETS
from lipstream.serve.page.fields import advanced_fields, component, settings_from
from lipstream.serve.page.look_at import Seen
from lipstream.serve.page.understood import understand
from lipstream.serve.service import JobRequest, Service
from lipstream.settings import SyncSettings

_HELP = {f.name: f.metadata["help"] for f in fields(SyncSettings)}
_LARGEST = "largest"
_CONSENT = "The person in the video has agreed to this, and I will tell those who watch that it was made with AI."
_HEADER = """<header class="ls-header"><h1>lipstream</h1>
<p>Give it a video of somebody and a recording. The video comes back with its mouth saying the recording.</p>
</header>"""
_JOB = '<section id="ls-job" aria-label="Progress and result"></section>'
_REMEMBER_CONSENT = "(given) => { sessionStorage.setItem('lipstream-consent', given ? 'yes' : ''); }"
_RECALL_CONSENT = "() => sessionStorage.getItem('lipstream-consent') === 'yes'"
_FOLLOW = "(job) => { if (job) { window.dispatchEvent(new CustomEvent('lipstream-job', {detail: job})); } }"


def build_form(service: Service) -> None:
    """Fill the open gr.Blocks."""
    models = list(service.settings.model_names)
    gr.HTML(_HEADER)
    with gr.Row(elem_id="files"):
        with gr.Column(min_width=280):
            video = _local(
                gr.Video(
                    label="Video",
                    sources=["upload", "webcam"],
                    elem_id="video",
                    buttons=[],
                    webcam_options=gr.WebcamOptions(mirror=False),
                )
            )
            about_video = gr.HTML("", elem_id="about-video")
        with gr.Column(min_width=280):
            speech = _local(
                gr.Audio(
                    label="Speech",
                    sources=["upload", "microphone"],
                    type="filepath",
                    elem_id="speech",
                    buttons=[],
                    editable=False,
                )
            )
            about_speech = gr.HTML("", elem_id="about-speech")
            with gr.Row(elem_id="sample-row"):
                gr.HTML("<p>No files at hand?</p>")
                use_sample = gr.Button("Use the sample", size="sm", elem_id="sample", min_width=140)
    facts = gr.HTML("", elem_id="facts")
    face = gr.Radio([_LARGEST], value=_LARGEST, label="Person to change", visible=False, elem_id="face")
    with gr.Row(elem_id="choices"):
        model = gr.Dropdown(
            models,
            value=models[0],
            label="Model",
            filterable=False,
            elem_id="model",
            info="the larger ones are sharper and slower",
        )
        preset = gr.Radio(list(PRESETS), value="exact", label="Preset", info=_HELP["preset"], elem_id="preset")
    advanced = []
    with gr.Accordion("More settings", open=False, elem_id="more"):
        for title, members in advanced_fields().items():
            gr.HTML(f"<h3>{html.escape(title.capitalize())}</h3>")
            with gr.Row(elem_classes="ls-fields"):
                advanced += [(f, component(f)) for f in members]
    consent = gr.Checkbox(False, label=_CONSENT, elem_id="consent", container=False)
    go = gr.Button("Lip-sync", variant="primary", elem_id="go")
    said = gr.HTML("", elem_id="said")
    gr.HTML(_JOB)
    gr.HTML(_footer(service))
    job = gr.Textbox(visible=False)

    def on_change(video: str | None, speech: str | None, model: str, preset: str) -> tuple[Any, ...]:
        found = understand(service, _uploaded(video), _uploaded(speech), model, preset)
        return found.video, found.speech, found.facts, ""

    def on_video(video: str | None, speech: str | None, model: str, preset: str) -> tuple[Any, ...]:
        found = understand(service, _uploaded(video), _uploaded(speech), model, preset)
        return found.video, found.speech, found.facts, "", _choices(found.seen)

    def on_go(
        request: gr.Request,
        video: str | None,
        speech: str | None,
        model: str,
        preset: str,
        face: str,
        agreed: bool,
        *given: Any,
    ) -> tuple[str, str]:
        wanted = _missing(_uploaded(video), _uploaded(speech), agreed)
        if wanted is not None or video is None or speech is None:
            return _said(wanted or ""), ""
        try:
            settings = settings_from(
                zip((f for f, _ in advanced), given, strict=True),
                preset=preset,
                face=None if face == _LARGEST else face,
            )
            asked = JobRequest(model=model, settings=settings)
            return "", service.submit(asked, Path(video), Path(speech), _client(request)).id
        except LipstreamError as error:
            return _said(f"{error.message}. {error.fix or ''}"), ""

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    seen_from, shown = [video, speech, model, preset], [about_video, about_speech, facts, said]
    gr.on(
        [speech.change, model.change, preset.change], on_change, seen_from, shown, trigger_mode="always_last", **quiet
    )
    video.change(on_video, seen_from, [*shown, face], trigger_mode="always_last", **quiet)
    use_sample.click(lambda: (str(sample.VIDEO), str(sample.SPEECH)), None, [video, speech], **quiet)
    consent.change(None, consent, None, js=_REMEMBER_CONSENT, **quiet)
    inputs = [video, speech, model, preset, face, consent, *(one for _, one in advanced)]
    go.click(on_go, inputs, [said, job], **quiet).then(None, job, None, js=_FOLLOW, **quiet)
    gr.on(None, None, None, consent, js=_RECALL_CONSENT, **quiet)  # when the page opens


def _choices(seen: Seen | None) -> Any:
    """Return the choice of a person, shown where there is one."""
    if seen is None or len(seen.faces) < 2:
        return gr.Radio([_LARGEST], value=_LARGEST, visible=False)
    people = [(f"Person {number}", one.setting) for number, one in enumerate(seen.faces, 1)]
    return gr.Radio(people, value=people[0][1], visible=True)


def _missing(video: str | None, speech: str | None, agreed: bool) -> str | None:
    if not video and not speech:
        return "Choose a video and a recording first."
    if not video or not speech:
        return f"Choose a {'recording' if video else 'video'} too."
    return None if agreed else "Please tick the box above first: the person in the video has to agree."


def _client(request: gr.Request) -> str:
    assert request.request is not None
    return str(request.request.scope["client_id"])


def _said(text: str) -> str:
    return f'<p class="ls-error" role="alert">{html.escape(text.strip())}</p>' if text else ""


def _footer(service: Service) -> str:
    keep = html.escape(service.settings.keep)
    return (
        f'<footer class="ls-footer"><p>Files stay on this server and are deleted {keep} after a job has ended.'
        " Results say that they were made with AI. For programs there is an"
        ' <a href="api/v1/openapi.json">interface</a>.</p></footer>'
    )


def _local(file: Any) -> Any:
    """Keep a component from fetching an address, and from copying a file of this machine, that a visitor names.

    Gradio checks neither in an application that is mounted.
    """
    move = file.async_move_resource_to_block_cache

    async def checked(path: Any) -> Any:
        return await move(path if Path(path) in (sample.VIDEO, sample.SPEECH) else _uploaded(str(path)))

    file.async_move_resource_to_block_cache = checked
    return file


def _uploaded(path: str | None) -> str | None:
    """Return the path of a file that a visitor has uploaded. Raises gr.Error for any other."""
    if path and not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("only uploaded files are taken")
    return path
