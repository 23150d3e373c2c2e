"""A stand-in for what ComfyUI publishes to nodes of its V3 interface: schemas are kept, files are files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import pytest


class InputOf:
    """An input or output with everything that it was made with; `kind` is its type's name."""

    def __init__(self, kind: str, name: str | None = None, **options: Any) -> None:
        self.kind, self.name, self.options = kind, name, options


def io_type(kind: str) -> SimpleNamespace:
    def made(name: str | None = None, **options: Any) -> InputOf:
        return InputOf(kind, name, **options)

    return SimpleNamespace(Input=made, Output=made)


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    inputs: list[InputOf]
    outputs: list[InputOf]
    description: str = ""
    is_output_node: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class VideoFromFile:
    def __init__(self, file: Any) -> None:
        self.file = file
        self.saved: list[str] = []

    def get_stream_source(self) -> Any:
        if not isinstance(self.file, str):
            self.file.seek(0)
        return self.file

    def get_dimensions(self) -> tuple[int, int]:
        with av.open(self.get_stream_source()) as container:
            return container.streams.video[0].width, container.streams.video[0].height

    def save_to(self, path: str) -> None:
        self.saved.append(path)
        Path(path).write_bytes(Path(self.file).read_bytes())


@dataclass
class Host:
    """What the stand-in saw: (value, total) of each progress report; `interrupted` ends the run."""

    temporary: Path
    output: Path
    progress: list[tuple[int, int]] = field(default_factory=list)
    interrupted: bool = False


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException."""


def install(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the modules where `import` finds them, until the test ends."""

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            host.progress.append((value, self.total))

    def check() -> None:
        if host.interrupted:
            raise Interrupted

    def save_path(prefix: str, folder: str, width: int, height: int) -> tuple[str, str, int, str, str]:
        subfolder, _, name = prefix.rpartition("/")
        (Path(folder) / subfolder).mkdir(parents=True, exist_ok=True)
        return str(Path(folder) / subfolder), name, 1, subfolder, prefix

    names = ("Combo", "Int", "Float", "String", "Boolean", "Video", "Audio", "Image")
    io = SimpleNamespace(
        **{name: io_type(name.upper()) for name in names},
        Custom=io_type,
        Schema=Schema,
        NodeOutput=NodeOutput,
        ComfyNode=object,
        FolderType=SimpleNamespace(output="output"),
    )
    ui = SimpleNamespace(PreviewVideo=list, SavedResult=lambda *parts: parts)
    modules: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": check},
        "comfy_api": {},
        "comfy_api.v0_0_2": {
            "io": io,
            "ui": ui,
            "ComfyExtension": object,
            "InputImpl": SimpleNamespace(VideoFromFile=VideoFromFile),
        },
        "folder_paths": {
            "get_temp_directory": lambda: str(host.temporary),
            "get_output_directory": lambda: str(host.output),
            "get_save_image_path": save_path,
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def forget(prefix: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a package be imported again, and be forgotten after the test."""
    for name in [name for name in sys.modules if name.split(".")[0] == prefix]:
        monkeypatch.delitem(sys.modules, name)

    def after() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == prefix]:
            del sys.modules[name]

    return after
