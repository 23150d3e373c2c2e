"""The ComfyUI nodes: against a stand-in of the published interface, and against ComfyUI itself where it runs."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import io
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.comfy import Host, Interrupted, VideoFromFile, forget, install
from helpers.media import write_wav
from lipstream import LipSync, SettingsError, SyncSettings, read_frames
from lipstream.bundled import sample
from lipstream.media.reader import probe

PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
ADDRESS = os.environ.get("LIPSTREAM_COMFYUI")
SPEECH_S = 0.4


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    made = Host(tmp_path / "temp", tmp_path / "output")
    install(made, monkeypatch)
    after = forget("comfyui_pack", monkeypatch)
    spec = importlib.util.spec_from_file_location(
        "comfyui_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "comfyui_pack", module)
    spec.loader.exec_module(module)
    yield made
    after()


@pytest.fixture
def nodes(host: Host) -> dict[str, Any]:
    pack = sys.modules["comfyui_pack"]
    made = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {node.define_schema().node_id: node for node in made}


@pytest.fixture(scope="module")
def model() -> Iterator[LipSync]:
    with LipSync.load("tiny", device="cpu", detector="mediapipe", threads=1) as sync:
        yield sync


def speech(seconds: float = SPEECH_S, rate_hz: int = 16000, channels: int = 1) -> dict[str, Any]:
    samples = torch.rand(1, channels, round(seconds * rate_hz), generator=torch.Generator().manual_seed(0)) - 0.5
    return {"waveform": samples, "sample_rate": rate_hz}


def test_a_video_file_is_synced_to_a_file(host: Host, nodes: dict[str, Any], model: LipSync) -> None:
    audio = speech(channels=2)
    made = nodes["LipstreamSyncVideo"].execute(model, VideoFromFile(str(sample.VIDEO)), audio, SyncSettings(seed=3))
    video, sound = made.args
    assert sound is audio
    assert Path(video.file).parent == host.temporary
    assert len([*read_frames(video.file)]) == round(25 * SPEECH_S)
    assert host.progress[0] == (0, 10) and host.progress[-1] == (10, 10)
    saved = nodes["LipstreamSaveVideo"].execute(video, "video/mine")
    assert saved.ui == [("mine_00001_.mp4", "video", "output")]
    assert (host.output / "video" / "mine_00001_.mp4").read_bytes() == Path(video.file).read_bytes()


def test_what_an_interrupt_leaves(host: Host, nodes: dict[str, Any], model: LipSync) -> None:
    host.interrupted = True
    with pytest.raises(Interrupted):
        nodes["LipstreamSyncVideo"].execute(model, VideoFromFile(str(sample.VIDEO)), speech())
    assert list(host.temporary.iterdir()) == []


def test_videos_without_a_whole_file_of_their_own(host: Host, nodes: dict[str, Any], tmp_path: Path) -> None:
    media = sys.modules["comfyui_pack.media"]
    whole = VideoFromFile(str(sample.VIDEO))
    assert media.video_file(whole, tmp_path) == sample.VIDEO
    in_memory = VideoFromFile(io.BytesIO(sample.VIDEO.read_bytes()))
    assert media.video_file(in_memory, tmp_path).read_bytes() == sample.VIDEO.read_bytes()

    class Cut(VideoFromFile):
        def get_active_trim_window(self) -> tuple[float, float]:
            return 1.0, 0.0

    class Cropped(VideoFromFile):
        def get_dimensions(self) -> tuple[int, int]:
            return 100, 100

    class VideoFromComponents(VideoFromFile):
        def get_stream_source(self) -> Any:
            raise AssertionError("this would encode all of it in memory")

    for kind in (Cut, Cropped, VideoFromComponents):
        video = kind(str(sample.VIDEO))
        assert media.video_file(video, tmp_path) == tmp_path / "video.mp4"
        assert video.saved == [str(tmp_path / "video.mp4")]


def test_images_are_synced_as_from_python(host: Host, nodes: dict[str, Any], model: LipSync) -> None:
    pictures = [frame.image for _, frame in zip(range(4), read_frames(sample.VIDEO), strict=False)]
    images, audio = torch.from_numpy(np.stack(pictures)).float() / 255, speech()
    made, _ = nodes["LipstreamSyncImages"].execute(model, images, audio).args
    expected = [*model.frames(pictures, audio["waveform"][0].numpy(), audio["sample_rate"])]
    assert made.shape == (10, *pictures[0].shape) and made.dtype == torch.float32
    assert np.array_equal((made * 255).round().to(torch.uint8).numpy(), np.stack(expected))
    assert host.progress[-1][1] == 10


def test_audio_becomes_a_file_of_the_same_samples(host: Host, tmp_path: Path) -> None:
    from lipstream.media.audio import probe_speech, read_planar

    audio = speech(seconds=5, rate_hz=44100, channels=2)
    info = probe_speech(sys.modules["comfyui_pack.media"].audio_file(audio, tmp_path))
    assert (info.sample_rate_hz, info.channels) == (44100, 2)
    assert np.array_equal(np.concatenate([*read_planar(info)], 1), audio["waveform"][0].numpy())


def test_each_setting_is_a_widget(host: Host, nodes: dict[str, Any]) -> None:
    schema = nodes["LipstreamSettings"].define_schema()
    names = {f.name: f for f in fields(SyncSettings)}
    assert set(names) - {one.name for one in schema.inputs} == {"audio_track"}
    assert all(names[one.name].metadata["help"] in one.options["tooltip"] for one in schema.inputs)
    defaults = {one.name: one.options["default"] for one in schema.inputs}
    execute = nodes["LipstreamSettings"].execute
    assert execute(**defaults).args == (SyncSettings(),)
    assert execute().args == (SyncSettings(),)
    chosen = {"preset": "fast", "num_inference_steps": 7, "guidance_scale": 0.0, "guidance_interval": "0,0.5"}
    chosen |= {"face": " left ", "texture": "source", "strip_metadata": True, "resolution": 256}
    expected = {**chosen, "guidance_interval": (0, 0.5), "face": "left"}
    assert execute(**defaults | chosen).args == (SyncSettings(**expected),)
    with pytest.raises(SettingsError, match="face"):
        execute(face="her")


def test_the_model_node_loads(host: Host, nodes: dict[str, Any]) -> None:
    execute = nodes["LipstreamLoadModel"].execute
    (loaded,) = execute("tiny", device="cpu", precision="fp32", quantize="none", detector="mediapipe").args
    with loaded:
        assert loaded.runtime.device == "cpu"


@pytest.mark.parametrize("file", sorted((PACK / "example_workflows").iterdir()), ids=lambda file: file.stem)
def test_example_workflows_fit_the_nodes(file: Path, host: Host, nodes: dict[str, Any]) -> None:
    workflow = json.loads(file.read_text())
    by_id = {node["id"]: node for node in workflow["nodes"]}
    for link, begin, slot, end, socket, kind in workflow["links"]:
        assert link in by_id[begin]["outputs"][slot]["links"] and by_id[begin]["outputs"][slot]["type"] == kind
        assert by_id[end]["inputs"][socket]["link"] == link and by_id[end]["inputs"][socket]["type"] == kind
    ours = [node for node in workflow["nodes"] if node["type"].startswith("Lipstream")]
    assert ours
    for node in ours:
        schema = nodes[node["type"]].define_schema()
        widgets = [one for one in schema.inputs if one.kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")]
        assert [one["name"] for one in node["inputs"]] == [one.name for one in schema.inputs if one not in widgets]
        assert len(node["widgets_values"]) == len(widgets)
        for value, widget in zip(node["widgets_values"], widgets, strict=True):
            assert value in widget.options.get("options", [value])


def call(path: str, content: dict[str, Any] | None = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{ADDRESS}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def upload(path: Path) -> str:
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'.encode()
    body = (
        head
        + path.read_bytes()
        + b'\r\n--x\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--x--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{ADDRESS}/upload/image", body, headers), timeout=60) as answer:
        return json.loads(answer.read())["name"]


def prompt(video: str, speech_file: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadVideo", "inputs": {"file": video}},
        "2": {"class_type": "LoadAudio", "inputs": {"audio": speech_file}},
        "3": {
            "class_type": "LipstreamLoadModel",
            "inputs": {"model": "tiny", "device": "cpu", "detector": "mediapipe"},
        },
        "4": {"class_type": "LipstreamSettings", "inputs": {"seed": time.time_ns() % 1000}},  # not from its cache
        "5": {
            "class_type": "LipstreamSyncVideo",
            "inputs": {"model": ["3", 0], "video": ["1", 0], "audio": ["2", 0], "settings": ["4", 0]},
        },
        "6": {"class_type": "LipstreamSaveVideo", "inputs": {"video": ["5", 0], "filename_prefix": "video/lipstream"}},
    }


def finished(nodes_of: dict[str, Any], interrupt_after_s: float | None = None) -> dict[str, Any]:
    name, begun_s = call("/prompt", {"prompt": nodes_of})["prompt_id"], time.monotonic()
    while name not in (history := call(f"/history/{name}")):
        if interrupt_after_s is not None and time.monotonic() - begun_s > interrupt_after_s:
            urllib.request.urlopen(urllib.request.Request(f"{ADDRESS}/interrupt", b"", method="POST"), timeout=60)
            interrupt_after_s = None
        assert time.monotonic() - begun_s < 240
        time.sleep(0.2)
    return history[name]


real = pytest.mark.skipif(ADDRESS is None, reason="LIPSTREAM_COMFYUI names no ComfyUI that has the nodes, HOST:PORT")


@real
def test_comfyui_runs_the_nodes(tmp_path: Path) -> None:
    said = upload(write_wav(tmp_path / "lipstream.wav", np.zeros(9600, np.int16), 16000))
    done = finished(prompt(upload(sample.VIDEO), said))
    assert done["status"]["status_str"] == "success", done["status"]
    (saved,) = done["outputs"]["6"]["images"]
    query = f"filename={saved['filename']}&subfolder={saved['subfolder']}&type={saved['type']}"
    with urllib.request.urlopen(f"{ADDRESS}/view?{query}", timeout=60) as answer:
        (tmp_path / "result.mp4").write_bytes(answer.read())
    assert probe(tmp_path / "result.mp4").width == probe(sample.VIDEO).width
    assert len([*read_frames(tmp_path / "result.mp4")]) == 15
    assert b"DigitalSourceType" in (tmp_path / "result.mp4").read_bytes()


@real
def test_comfyui_interrupts_a_run(tmp_path: Path) -> None:
    said = upload(write_wav(tmp_path / "long.wav", np.zeros(60 * 16000, np.int16), 16000))
    begun_s = time.monotonic()
    done = finished(prompt(upload(sample.VIDEO), said), interrupt_after_s=3)
    assert any(kind == "execution_interrupted" for kind, _ in done["status"]["messages"]), done["status"]
    assert time.monotonic() - begun_s < 30
