"""Prepared clips: the same pictures as from the video, one file, refused where it is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from helpers.models import make_small_model_folder
from helpers.pipeline import read_images, write_clip, write_speech
from lipstream import Avatar, LipSync, RuntimeSettings, SyncSettings
from lipstream.bundled import sample
from lipstream.cli.main import main
from lipstream.errors import InputError, ModelError, OutputError, SettingsError
from lipstream.live.avatar_info import is_avatar
from lipstream.live.clip import place_of
from lipstream.live.prepare import longest_shot
from lipstream.live.tensor_file import Column, TensorFile
from lipstream.media.writer import VideoWriter
from lipstream.pipeline.records import KnownFaces

N_FRAMES = 20


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's first frames, with two in front of them that show nothing."""
    images = read_images(sample.VIDEO)[: N_FRAMES - 2]
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", [*[np.zeros_like(images[0])] * 2, *images])


@pytest.fixture(scope="module")
def avatar(sync: LipSync, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Avatar:
    return sync.prepare_avatar(clip, tmp_path_factory.mktemp("avatar") / "clip.avatar")


def written(monkeypatch: pytest.MonkeyPatch, sync: LipSync, *args: Any) -> list[NDArray[np.uint8]]:
    pictures: list[NDArray[np.uint8]] = []
    write = VideoWriter.write

    def recorded(self: VideoWriter, picture: Any) -> None:
        pictures.append(picture.image())
        write(self, picture)

    with monkeypatch.context() as patched:
        patched.setattr(VideoWriter, "write", recorded)
        sync(*args, overwrite=True)
    return pictures


@pytest.mark.parametrize("loop", ["pingpong", "hold"])
def test_the_pictures_are_those_of_the_video_bit_for_bit(
    sync: LipSync, clip: Path, avatar: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 1.3)  # longer than the clip
    settings = SyncSettings(loop=loop)
    expected = written(monkeypatch, sync, clip, speech, tmp_path / "video.mp4", settings)
    made = written(monkeypatch, sync, avatar.path, speech, tmp_path / "avatar.mp4", settings)
    assert len(made) == len(expected) == 32
    assert all(np.array_equal(one, other) for one, other in zip(made, expected, strict=True))
    assert (tmp_path / "video.mp4").read_bytes() == (tmp_path / "avatar.mp4").read_bytes()


def test_nothing_is_searched_for_or_encoded_again(
    sync: LipSync, avatar: Avatar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **more: Any) -> Any:
        raise AssertionError("this was prepared")

    monkeypatch.setattr(sync.detector, "detect", refused)
    monkeypatch.setattr("lipstream.pipeline.line.align", refused)
    monkeypatch.setattr("lipstream.diffusion.conditioning.encode", refused)
    result = sync(avatar, write_speech(tmp_path / "speech.wav", 0.4), tmp_path / "out.mp4")
    assert (result.frames_with_face, result.frames_without) == (8, 2)


def test_what_it_says_of_itself(avatar: Avatar, clip: Path) -> None:
    assert (avatar.width, avatar.height, avatar.n_frames, avatar.frame_rate) == (512, 512, N_FRAMES, 25)
    assert avatar.model == "tiny"
    assert avatar.info.loop == (2, N_FRAMES)  # where there is a face
    assert [avatar.has_face(frame) for frame in range(3)] == [False, False, True]
    with avatar.files() as (video, table):
        assert video.read_bytes() == clip.read_bytes()
        assert len(table) == N_FRAMES
    assert not video.exists()


def test_rows_are_read_when_they_are_looked_at(avatar: Avatar) -> None:
    left, top, closed = avatar.idle(5)
    with safe_open(avatar.path, framework="pt") as file:
        assert torch.equal(avatar.crop(5), file.get_tensor("crops")[5])
        assert torch.equal(avatar.latents(5), file.get_tensor("latents")[5])
        assert np.array_equal(closed, file.get_tensor("idle")[5].numpy())
    assert 0 <= left < left + closed.shape[1] <= 512
    assert 0 <= top < top + closed.shape[0] <= 512


def test_another_model_is_refused(
    avatar: Avatar, goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_small_model_folder(goldens, tmp_path / "small")
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    with (
        LipSync.load(folder, RuntimeSettings(detector="mediapipe")) as other,
        pytest.raises(ModelError, match="prepared for the model tiny, not for small"),
    ):
        other(avatar, speech, tmp_path / "out.mp4")
    with (
        LipSync.load(folder, RuntimeSettings(detector="mediapipe")) as other,
        pytest.raises(ModelError, match="prepared for the model tiny"),
    ):
        other.live(avatar)
    code = main(["sync", str(avatar.path), str(speech), "-o", str(tmp_path / "out.mp4"), "--model", str(folder)])
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert (code, "prepared for the model tiny" in line, "Fix: " in line) == (5, True, True)
    assert not (tmp_path / "out.mp4").exists()


def changed_header(path: Path, target: Path, **changes: Any) -> Path:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"]["lipstream"] = json.dumps(json.loads(header["__metadata__"]["lipstream"]) | changes)
    text = json.dumps(header).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return target


@pytest.mark.parametrize("kept", [0.0, 1e-5, 0.5, 0.999])
def test_a_truncated_file_is_refused(avatar: Avatar, tmp_path: Path, kept: float) -> None:
    content = avatar.path.read_bytes()
    (tmp_path / "cut.avatar").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match="not a prepared clip") as caught:
        Avatar.open(tmp_path / "cut.avatar")
    assert "\n" not in str(caught.value)
    assert "lipstream prepare" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99, not 1"),
        ({"format": "lipstream faces"}, "another file"),
        ({"n_frames": 3}, "out of range|shapes"),
        ({"resolution": 64}, "shapes"),
        ({"video_suffix": "/../x"}, "a video called"),
        ({"loop": [5, 5]}, "out of range"),
        ({"width": "many"}, "prepared clip"),
        ({"unknown": 1}, "unexpected keyword"),
    ],
)
def test_another_version_and_nonsense_are_refused(
    avatar: Avatar, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = changed_header(avatar.path, tmp_path / "other.avatar", **changes)
    with pytest.raises(InputError, match=message):
        Avatar.open(path)


def test_a_damaged_video_is_refused(sync: LipSync, avatar: Avatar, clip: Path, tmp_path: Path) -> None:
    content = avatar.path.read_bytes()
    at = content.index(clip.read_bytes()[-2000:])
    (tmp_path / "damaged.avatar").write_bytes(content[: at + 100] + b"damaged" + content[at + 107 :])
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    with pytest.raises(InputError, match="damaged: the video in it"):
        sync(tmp_path / "damaged.avatar", speech, tmp_path / "out.mp4")


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"\x10\0\0\0\0\0\0\0lipstream avatar"])
def test_other_files_are_no_avatars(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError):
        Avatar.open(tmp_path / "x")
    assert is_avatar(tmp_path / "x") == (b"avatar" in content)
    assert not is_avatar(tmp_path / "missing")


def test_settings_that_were_decided(sync: LipSync, avatar: Avatar, tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    for settings, message in (
        (SyncSettings(resolution=192), "resolution = 192: the clip was prepared with 128"),
        (SyncSettings(face="left"), "face = left"),
        (SyncSettings(detect_every=5), "detect_every = 5"),
    ):
        with pytest.raises(SettingsError, match=message):
            sync(avatar, speech, tmp_path / "out.mp4", settings)
    sync(avatar, speech, tmp_path / "out.mp4", SyncSettings(resolution=128, tracking="people", preset="fast"))
    with pytest.raises(SettingsError, match="its own table"):
        sync(avatar, speech, tmp_path / "out2.mp4", faces=tmp_path / "faces")
    with pytest.raises(SettingsError, match="for one person"):
        sync(avatar, {"left": speech, "right": speech}, tmp_path / "out3.mp4")


def test_an_existing_file_stays(sync: LipSync, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.avatar").write_text("kept")
    with pytest.raises(OutputError, match="already exists"):
        sync.prepare_avatar(clip, tmp_path / "a.avatar")
    with pytest.raises(OutputError, match="also an input"):
        sync.prepare_avatar(clip, clip, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.avatar"]
    assert (tmp_path / "a.avatar").read_text() == "kept"


def test_a_tensor_file_is_whole_or_absent(tmp_path: Path) -> None:
    columns = {"a": Column("U8", (3, 2)), "b": Column("F32", (2, 1)), "c": Column("I64", (1,))}
    values = {"a": np.arange(6, dtype=np.uint8), "b": np.array([0.5, 2], np.float32), "c": np.array([-7])}
    with TensorFile(tmp_path / "x", columns, {"said": "so"}, overwrite=False) as file:
        for name, value in values.items():
            file.write(name, 0, value.tobytes())
        assert not (tmp_path / "x").exists()
    with safe_open(tmp_path / "x", framework="np") as read:
        assert read.metadata() == {"said": "so"}
        for name, value in values.items():
            assert np.array_equal(read.get_tensor(name).ravel(), value)
    with pytest.raises(ValueError, match="stop"), TensorFile(tmp_path / "y", columns, {}, overwrite=True):
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_part_that_is_played_to_and_fro() -> None:
    def known(faces: str) -> KnownFaces:
        matrices = np.zeros((len(faces), 2, 3), np.float32)
        matrices[[one == "." for one in faces]] = np.nan
        return KnownFaces(matrices, np.array([one == "b" for one in faces]), np.ones(len(faces)))

    for faces, loop in (("ffff", (0, 4)), ("..ff.f", (2, 4)), ("ffbfff", (2, 6)), (".bf.", (1, 3)), ("b", (0, 1))):
        assert longest_shot(known(faces)) == loop
    assert [place_of(index, (2, 5)) for index in range(8)] == [2, 3, 4, 4, 3, 2, 2, 3]


def test_the_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, speech = tmp_path / "made.avatar", write_speech(tmp_path / "speech.wav", 0.2)
    options = ["--detector", "mediapipe", "--progress", "none"]
    assert main(["prepare", str(clip), "-o", str(target), "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["faces"] == {"frames_with_face": N_FRAMES - 2, "frames_without": 2}
    assert (said["frames"], said["model"], said["size_bytes"]) == (N_FRAMES, "tiny", target.stat().st_size)
    assert main(["sync", str(target), str(speech), "-o", str(tmp_path / "out.mp4"), *options]) == 0
    assert len(read_images(tmp_path / "out.mp4")) == 5
    assert main(["sync", str(target), str(speech), "-o", str(tmp_path / "2.mp4"), "--work", str(tmp_path / "w")]) == 2
    assert "prepared clip" in capsys.readouterr().err
    assert main(["prepare", str(clip), "-o", str(target), *options]) == 6
