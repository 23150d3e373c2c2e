"""The nodes: load a model, choose settings, lip-sync a VIDEO or an IMAGE batch, save a VIDEO as it is."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import folder_paths
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.v0_0_2 import ComfyExtension, InputImpl, io, ui

from lipstream import LipSync, Progress, RuntimeSettings, SyncSettings

from .media import Pictures, audio_file, video_file
from .settings_inputs import settings_from, settings_inputs

CATEGORY = "lipstream"
Model = io.Custom("LIPSTREAM_MODEL")
Settings = io.Custom("LIPSTREAM_SETTINGS")

_FRAME_RATE_HZ = 25
_HELP = {f.name: f.metadata["help"] for f in fields(RuntimeSettings)}
_HINTS = get_type_hints(RuntimeSettings)


class LoadModel(io.ComfyNode):
    """Loads a model once; ComfyUI keeps it for the next run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipstreamLoadModel",
            display_name="Load Lip-Sync Model",
            category=CATEGORY,
            inputs=[
                io.Combo.Input("model", options=["tiny", "latentsync-1.5", "latentsync-1.6"], default="tiny"),
                io.String.Input(
                    "folder", default="", optional=True, tooltip="a folder that holds a model, in its place"
                ),
                io.String.Input("device", default="auto", optional=True, tooltip=_HELP["device"]),
                _combo("precision"),
                _combo("quantize"),
                _combo("detector"),
            ],
            outputs=[Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, folder: str = "", **options: Any) -> io.NodeOutput:
        return io.NodeOutput(LipSync.load(folder.strip() or model, **options))


class ChooseSettings(io.ComfyNode):
    """Every setting of a run; what is left at its default is up to the model and the preset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipstreamSettings",
            display_name="Lip-Sync Settings",
            category=CATEGORY,
            inputs=settings_inputs(),
            outputs=[Settings.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, **chosen: Any) -> io.NodeOutput:
        return io.NodeOutput(settings_from(chosen))


class SyncVideo(io.ComfyNode):
    """A VIDEO with the mouth saying an AUDIO: read, generated and written frame by frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipstreamSyncVideo",
            display_name="Lip-Sync Video",
            category=CATEGORY,
            description="Use it on people who have agreed to it. The result says that it was made with AI.",
            inputs=[
                Model.Input("model"),
                io.Video.Input("video"),
                io.Audio.Input("audio", tooltip="the speech"),
                Settings.Input("settings", optional=True),
            ],
            outputs=[io.Video.Output(display_name="video"), io.Audio.Output(display_name="audio")],
        )

    @classmethod
    def execute(
        cls, model: LipSync, video: Any, audio: dict[str, Any], settings: SyncSettings | None = None
    ) -> io.NodeOutput:
        kept = Path(folder_paths.get_temp_directory())
        kept.mkdir(parents=True, exist_ok=True)
        output = kept / f"lipstream_{secrets.token_hex(8)}.mp4"
        with tempfile.TemporaryDirectory(prefix="lipstream-") as folder:
            source, speech = video_file(video, Path(folder)), audio_file(audio, Path(folder))
            model(source, speech, output, settings, on_progress=_report)
        return io.NodeOutput(InputImpl.VideoFromFile(str(output)), audio)


class SyncImages(io.ComfyNode):
    """An IMAGE batch, 25 to the second, with the mouth saying an AUDIO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipstreamSyncImages",
            display_name="Lip-Sync Images",
            category=CATEGORY,
            description="Frames at 25 a second, all in memory. Lip-Sync Video holds a few at a time.",
            inputs=[
                Model.Input("model"),
                io.Image.Input("images", tooltip="frames, 25 a second"),
                io.Audio.Input("audio", tooltip="the speech"),
                Settings.Input("settings", optional=True),
            ],
            outputs=[io.Image.Output(display_name="images"), io.Audio.Output(display_name="audio")],
        )

    @classmethod
    def execute(
        cls, model: LipSync, images: torch.Tensor, audio: dict[str, Any], settings: SyncSettings | None = None
    ) -> io.NodeOutput:
        samples = audio["waveform"][0].float().cpu().numpy()
        rate_hz = int(audio["sample_rate"])
        n, (height, width) = round(_FRAME_RATE_HZ * samples.shape[1] / rate_hz), images.shape[1:3]
        made, i = torch.empty(n, height, width, 3), 0
        for i, picture in enumerate(model.frames(Pictures(images), samples, rate_hz, settings, on_progress=_report), 1):
            made[i - 1] = torch.from_numpy(picture).float() / 255
        return io.NodeOutput(made[:i], audio)


class SaveAsIs(io.ComfyNode):
    """Copies a VIDEO's file to the output folder byte for byte, which keeps all marks of origin."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LipstreamSaveVideo",
            display_name="Save Video As It Is",
            category=CATEGORY,
            description="Save Video writes the file again, without XMP and C2PA manifest; this node keeps them.",
            inputs=[io.Video.Input("video"), io.String.Input("filename_prefix", default="video/lipstream")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, video: Any, filename_prefix: str) -> io.NodeOutput:
        width, height = video.get_dimensions()
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        with tempfile.TemporaryDirectory(prefix="lipstream-") as temporary:
            source = video_file(video, Path(temporary))
            file = f"{name}_{counter:05}_{source.suffix or '.mp4'}"
            shutil.copyfile(source, Path(folder) / file)
        return io.NodeOutput(ui=ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.output)]))


class Extension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, ChooseSettings, SyncVideo, SyncImages, SaveAsIs]


async def comfy_entrypoint() -> Extension:
    """Return the extension; ComfyUI calls this once."""
    return Extension()


def _combo(name: str) -> Any:
    options = list(get_args(_HINTS[name]))
    return io.Combo.Input(name, options=options, default=options[0], optional=True, tooltip=_HELP[name])


def _report(progress: Progress) -> None:
    """Show how far a run is; where the user has interrupted it, end it by ComfyUI's own exception."""
    throw_exception_if_processing_interrupted()
    ProgressBar(max(1, progress.n_frames)).update_absolute(progress.frames)
