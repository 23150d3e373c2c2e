"""A Space with ZeroGPU: one function that lip-syncs. LIPSTREAM_MODEL names the model.

ZeroGPU forks the process for a turn, and a model that was loaded before could not compute there: each fork loads it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import spaces

from lipstream import LipstreamError, LipSync, Progress, SyncSettings

PRESETS = ["fast", "balanced", "exact"]
MODEL = os.environ.get("LIPSTREAM_MODEL", "latentsync-1.6")


@lru_cache(maxsize=1)
def model() -> LipSync:
    """Return the model of this process."""
    return LipSync.load(MODEL)


@spaces.GPU(duration=120)
def lip_sync(video: str | None, speech: str | None, preset: str, progress: Any = gr.Progress()) -> str:
    """Return the file of the video with the mouth saying the speech."""
    if not video or not speech:
        raise gr.Error("A video and a recording are needed.")
    output = Path(tempfile.mkdtemp()) / "lip-synced.mp4"

    def report(now: Progress) -> None:
        progress((now.frames, now.n_frames), unit="frames")

    try:
        model()(video, speech, output, SyncSettings(preset=preset), on_progress=report)
    except LipstreamError as error:
        raise gr.Error(str(error)) from error
    return str(output)


inputs = [gr.Video(label="Video"), gr.Audio(type="filepath", label="Speech"), gr.Radio(PRESETS, value="fast")]
demo = gr.Interface(
    lip_sync,
    inputs,
    gr.Video(label="Result"),
    title="lipstream",
    description="Use it on people who have agreed to it. The result says in its metadata that it was made with AI.",
)

if __name__ == "__main__":
    subprocess.run([sys.executable, "-m", "lipstream", "models", "download", MODEL], check=True)
    demo.launch()
