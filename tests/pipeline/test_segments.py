"""Segments of a run: what is read, planned, rendered and joined is what a run from end to end makes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.media import clicks, lag, number_of, write_numbered, write_wav
from helpers.models import make_model_folder
from helpers.pipeline import FAST, KnownFace, psnr_db, read_images, write_clip, write_speech
from lipstream import InputError, LipSync, NoFaceError, OutputError, RuntimeSettings, SettingsError, SyncSettings
from lipstream.audio_features.features import feature_rows, first_block_of, first_row_of, frame_windows
from lipstream.audio_features.mel import log_mel_maximum
from lipstream.media.audio import read_mono
from lipstream.media.loop import FrameIndex, read_looped
from lipstream.media.picture import FilmedPicture
from lipstream.media.reader import probe
from lipstream.media.segment import read_indexed, read_segment
from lipstream.media.writer import VideoWriter
from lipstream.models.load import Model
from lipstream.models.whisper import AudioEncoder, AudioEncoderConfig
from lipstream.pipeline.analyse import FaceTable, parts_of, table_of
from lipstream.pipeline.file_job import probe_inputs
from lipstream.pipeline.plan import segments_of, windows_of
from lipstream.pipeline.records import Aligned
from lipstream.pipeline.windows import gather
from lipstream.pipeline.work import WorkFolder
from lipstream.scale.segments import sync_in_segments

N_FRAMES = 75


class MovingFace(KnownFace):
    """A detector whose landmarks depend on the picture, so that smoothing over time shows in every frame."""

    def detect(self, image: NDArray[np.uint8]) -> Any:
        face = super().detect(image)
        return None if face is None else replace(face, landmarks=face.landmarks + image[::16, ::16].mean() % 7)


@pytest.fixture
def make(model: Model, recorded: dict[str, NDArray[Any]]) -> Callable[..., LipSync]:
    def made(batch: int = 1) -> LipSync:
        runtime = RuntimeSettings(device="cpu", threads=2, batch=batch)
        return LipSync(model, MovingFace(recorded["landmarks"][0]), runtime)

    return made


@pytest.fixture(scope="module")
def clip(recorded: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames, the first two and three in the middle without a face."""
    frames = [recorded["frames"][i % len(recorded["frames"])] for i in range(40)]
    for i in (0, 1, 20, 21, 22):
        frames[i] = np.zeros_like(frames[i])
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Digests of the pictures that each output was given, by its name."""
    pictures: dict[str, list[str]] = {}
    write = VideoWriter.write

    def watched(self: VideoWriter, picture: FilmedPicture) -> None:
        samples = b"".join(plane.tobytes() for plane in picture.planes)
        pictures.setdefault(self.path.name, []).append(hashlib.sha256(samples).hexdigest())
        write(self, picture)

    monkeypatch.setattr(VideoWriter, "write", watched)
    return pictures


def of_pieces(written: dict[str, list[str]]) -> list[str]:
    return [picture for name in sorted(written) if name[0].isdigit() for picture in written[name]]


@pytest.mark.parametrize(
    ("settings", "batch", "n_syncs"),
    [
        (FAST, 1, 1),
        (FAST, 2, 1),
        (FAST, 1, 3),
        (replace(FAST, detect_every=4), 1, 2),
        (replace(FAST, loop="hold"), 1, 2),
        (replace(FAST, loop="trim"), 1, 1),
    ],
    ids=["one", "batched", "three-devices", "keyframes", "hold", "trim"],
)
def test_segments_are_a_plain_run_bit_for_bit(
    make: Callable[..., LipSync],
    clip: Path,
    tmp_path: Path,
    written: dict[str, list[str]],
    settings: SyncSettings,
    batch: int,
    n_syncs: int,
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 2.6, 44100)  # 65 frames of a clip of 40
    plain = make(batch)(clip, speech, tmp_path / "plain.mp4", settings)
    syncs = [make(batch) for _ in range(n_syncs)]
    result = sync_in_segments(
        syncs, clip, speech, tmp_path / "joined.mp4", settings, work=tmp_path / "work", segment_s=0.8
    )
    pieces = [name for name in written if name[0].isdigit()]
    assert len(pieces) >= 2
    assert of_pieces(written) == written["plain.mp4"]
    assert (result.frames, result.frames_with_face) == (plain.frames, plain.frames_with_face)
    assert result.spans_without == plain.spans_without != ()
    assert [stage.frames for stage in result.stages][5:] == [plain.frames] * 3  # denoise, composite, write
    assert result.settings == plain.settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joined.mp4", "plain.mp4", "speech.wav"]


def test_joins_are_not_seen_and_the_sound_is_whole(make: Callable[..., LipSync], clip: Path, tmp_path: Path) -> None:
    speech = write_wav(tmp_path / "speech.wav", clicks(3.0, 44100), 44100)
    settings = replace(FAST, crf=18)
    make()(clip, speech, tmp_path / "plain.mp4", settings)
    sync_in_segments([make(), make()], clip, speech, tmp_path / "joined.mp4", settings, segment_s=0.8)
    plain, joined = read_images(tmp_path / "plain.mp4"), read_images(tmp_path / "joined.mp4")
    assert len(joined) == len(plain) == N_FRAMES
    assert min(psnr_db(a, b) for a, b in zip(plain, joined, strict=True)) > 33
    with av.open(str(tmp_path / "plain.mp4")) as one, av.open(str(tmp_path / "joined.mp4")) as other:
        for a, b in zip(one.streams, other.streams, strict=True):
            assert (a.codec_context.name, a.duration, a.time_base) == (b.codec_context.name, b.duration, b.time_base)
        colors = [
            (c.pix_fmt, c.color_range, c.colorspace, c.color_primaries, c.color_trc, c.width, c.height)
            for c in (one.streams.video[0].codec_context, other.streams.video[0].codec_context)
        ]
        assert colors[0] == colors[1]
        assert one.metadata["comment"] == other.metadata["comment"]
        times = [[frame.pts * frame.time_base for frame in c.decode(video=0)] for c in (one, other)]
        assert times[0] == times[1] == [Fraction(i, 25) for i in range(N_FRAMES)]
    sounds = [np.concatenate(list(read_mono(tmp_path / name, 44100))) for name in ("plain.mp4", "joined.mp4")]
    np.testing.assert_array_equal(*sounds)
    assert lag(sounds[1], np.concatenate(list(read_mono(speech, 44100)))) == 0


def test_work_is_taken_for_the_same_run_only(
    make: Callable[..., LipSync], clip: Path, tmp_path: Path, written: dict[str, list[str]]
) -> None:
    speech, folder = write_speech(tmp_path / "speech.wav", 1.7), tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")

    def rendered(name: str, settings: SyncSettings = FAST, **more: Any) -> list[str]:
        written.clear()
        sync_in_segments([make()], clip, speech, tmp_path / name, settings, work=folder, segment_s=0.8, **more)
        return [piece for piece in sorted(written) if piece[0].isdigit()]

    def pieces() -> list[Path]:
        return sorted(folder.glob("*/pieces/*"))

    all_of_it = rendered("one.mp4", keep_work=True)
    assert len(all_of_it) == len(pieces()) >= 2
    assert rendered("two.mp4", keep_work=True) == []
    pieces()[1].unlink()
    pieces()[0].write_bytes(pieces()[0].read_bytes()[:3000])  # not whole: a disk that lost its end
    (pieces()[0].parent / ".00000000-00000020.dead.part.mp4").write_bytes(b"killed")
    assert rendered("three.mp4", keep_work=True) == all_of_it[:2]
    assert len(pieces()) == len(all_of_it)
    assert rendered("other.mp4", replace(FAST, seed=1), keep_work=True) == all_of_it
    assert len({piece.parent for piece in pieces()}) == 2
    assert rendered("four.mp4") == []
    outputs = [(tmp_path / f"{name}.mp4").read_bytes() for name in ("one", "two", "three", "four")]
    assert outputs == outputs[:1] * 4
    assert len({piece.parent for piece in pieces()}) == 1
    assert rendered("other2.mp4", replace(FAST, seed=1)) == []
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_two_runs_do_not_work_in_one_folder(make: Callable[..., LipSync], clip: Path, tmp_path: Path) -> None:
    speech, sync = write_speech(tmp_path / "speech.wav", 0.5), make()
    inputs = probe_inputs(clip, speech, tmp_path / "out.mp4", overwrite=False)
    held = WorkFolder(tmp_path / "work", sync.run_key(inputs, FAST))
    with pytest.raises(OutputError, match="another run with the same inputs and settings works in it"):
        sync_in_segments([sync], clip, speech, tmp_path / "out.mp4", FAST, work=tmp_path / "work")
    held.close()
    sync_in_segments([sync], clip, speech, tmp_path / "out.mp4", FAST, work=tmp_path / "work")


def test_a_second_speech_searches_no_face(
    make: Callable[..., LipSync], clip: Path, tmp_path: Path, written: dict[str, list[str]]
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 2.2)
    sync = make()
    table = sync.analyse(clip)
    table.save(tmp_path / "clip.faces")
    assert (len(table), table.is_whole) == (40, True)
    sync(clip, speech, tmp_path / "plain.mp4", FAST)
    calls = sync.detector.calls  # type: ignore[attr-defined]
    result = sync(clip, speech, tmp_path / "known.mp4", FAST, faces=tmp_path / "clip.faces")
    sync_in_segments([sync], clip, speech, tmp_path / "joined.mp4", FAST, faces=table, segment_s=0.8)
    assert sync.detector.calls == calls  # type: ignore[attr-defined]
    assert written["known.mp4"] == written["plain.mp4"] == of_pieces(written)
    assert [stage.frames for stage in result.stages] == [55] * 8


def test_a_table_that_does_not_belong_is_refused(make: Callable[..., LipSync], clip: Path, tmp_path: Path) -> None:
    speech, sync = write_speech(tmp_path / "speech.wav", 0.5), make()
    table = sync.analyse(clip)
    table.save(tmp_path / "clip.faces")
    changed = tmp_path / "changed.mp4"
    changed.write_bytes(clip.read_bytes() + b"\0")

    def refused(video: Path, faces: Any, kind: type[Exception], match: str, **fields: Any) -> None:
        with pytest.raises(kind, match=match):
            sync(video, speech, tmp_path / "out.mp4", replace(FAST, **fields), faces=faces)
        assert not (tmp_path / "out.mp4").exists()

    refused(changed, table, InputError, "made from another video, or this one has changed since")
    refused(clip, table, SettingsError, "detect_every = 3: the table of faces was made with 1", detect_every=3)
    refused(clip, replace(table, is_whole=False), InputError, "ends after 40 frames, before the video does")
    refused(clip, tmp_path / "missing", InputError, "no such file")
    refused(clip, speech, InputError, "not a table of faces")
    cut = tmp_path / "cut.faces"
    cut.write_bytes((tmp_path / "clip.faces").read_bytes()[:-9])
    refused(clip, cut, InputError, "not a table of faces")
    blank = replace(table, landmarks=np.full_like(table.landmarks, np.nan))
    refused(clip, blank, NoFaceError, "no usable face in the 12 frames searched")
    refused(clip, table, NoFaceError, "no usable face in frame 0", no_face="error")


def test_a_table_is_what_was_saved(make: Callable[..., LipSync], clip: Path, tmp_path: Path) -> None:
    table = make().analyse(clip, SyncSettings(detect_every=5))
    table.save(tmp_path / "clip.faces")
    loaded = FaceTable.load(tmp_path / "clip.faces")
    np.testing.assert_array_equal(loaded.landmarks, table.landmarks)
    assert vars(loaded.frames) == vars(table.frames)
    assert (loaded.detector, loaded.detect_every, loaded.is_whole) == ("known", 5, True)
    assert (tmp_path / "clip.faces").stat().st_size < 40 * 100 + 1000


@pytest.mark.parametrize("detect_every", [1, 3])
def test_parts_of_a_video_are_searched_by_themselves(
    make: Callable[..., LipSync], clip: Path, detect_every: int
) -> None:
    sync, settings, video = make(), SyncSettings(detect_every=detect_every), probe(clip)
    whole = sync.analyse(clip, settings)
    frames, first_face = sync.index_frames(video, 1000, settings)
    parts = parts_of(len(frames), settings, 2)
    assert len(parts) > 4
    found = [sync.search(video, frames, part, settings, first_face) for part in reversed(parts)]
    table = table_of(video, "known", settings, found[::-1], frames, 1000)
    np.testing.assert_array_equal(table.landmarks, whole.landmarks)
    assert vars(table.frames) == vars(whole.frames)
    assert (table.is_whole, table.sha256, first_face) == (True, whole.sha256, 2)


# Windows and segments


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_planned_windows_are_those_that_are_gathered(share: float) -> None:
    has_face = (np.random.default_rng(3).random(211) < share).tolist()
    crop, audio = torch.zeros(1), torch.zeros(1)
    frames: list[Any] = [Aligned(None, None, crop if one else None) for one in has_face]  # type: ignore[arg-type]
    gathered = [(len(window.frames), window.faces) for window in gather(frames, [audio] * 211, 8)]
    planned = list(windows_of(has_face, 8))
    assert [(one.stop - one.start, one.faces) for one in planned] == gathered
    for batch in (1, 3):
        segments = segments_of(has_face, 8, batch, 50)
        assert [segment.start for segment in segments] == [0, *(segment.stop for segment in segments[:-1])]
        assert segments[-1].stop == 211
        assert all(len(segment) >= 50 for segment in segments[:-1])
        assert {segment.stop for segment in segments} <= {window.stop for window in planned}


# Reading


@pytest.fixture(scope="module")
def odd_clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("odd")
    uneven = np.cumsum(np.random.default_rng(0).integers(5, 90, 60)).tolist()
    ms = Fraction(1, 1000)
    return {
        "long-gop": write_numbered(folder / "long.mp4", list(range(60)), Fraction(1, 25), g="250"),
        "short-gop": write_numbered(folder / "short.mp4", list(range(60)), Fraction(1, 25), g="7", bf="3"),
        "open-gop": write_numbered(
            folder / "open.mp4", list(range(60)), Fraction(1, 25), g="10", bf="3", **{"x264-params": "open-gop=1"}
        ),
        "variable": write_numbered(folder / "variable.mkv", [0, *uneven], ms, g="9"),
        "ntsc": write_numbered(folder / "ntsc.mp4", [1001 * i for i in range(70)], Fraction(1, 30000), g="12"),
        "slow": write_numbered(folder / "slow.mp4", list(range(24)), Fraction(1, 10), g="5"),
        "late": write_numbered(folder / "late.mp4", [i + 9 for i in range(30)], Fraction(1, 25), with_sound=True),
        "raw": write_numbered(folder / "raw.h264", list(range(60)), Fraction(1, 25), g="10"),
    }


@pytest.mark.parametrize("name", ["long-gop", "short-gop", "open-gop", "variable", "ntsc", "slow", "late", "raw"])
@pytest.mark.parametrize("max_held_bytes", [1, 10_000_000])
def test_a_segment_is_read_as_from_the_beginning(odd_clips: dict[str, Path], name: str, max_held_bytes: int) -> None:
    path, known = odd_clips[name], FrameIndex()
    n = len(list(read_indexed(path, 1000, known)))
    for loop, total in (("pingpong", 3 * n), ("hold", n + 20), ("trim", n)):
        whole = [(f.index, f.source_index, f.is_repeat, number_of(f.image)) for f in read_looped(path, total, loop)]  # type: ignore[arg-type]
        for start, stop in ((0, 7), (n - 9, n), (11, 24), (n - 5, n + 12), (n, n + 3), (2 * n - 3, 2 * n + 9)):
            if stop > len(whole):
                continue
            part = list(read_segment(path, known, start, stop, loop, max_held_bytes=max_held_bytes))  # type: ignore[arg-type]
            found = [(f.index, f.source_index, f.is_repeat, number_of(f.image)) for f in part]
            assert found == whole[start:stop], (loop, start, stop)
            assert len({id(f.picture) for f in part}) == len(part)


def test_a_video_that_shrank_is_refused(odd_clips: dict[str, Path]) -> None:
    known = FrameIndex()
    list(read_indexed(odd_clips["long-gop"], 1000, known))
    with pytest.raises(InputError, match="frames 50 to 59 cannot be read a second time"):
        list(read_segment(odd_clips["slow"], known, 50, 60, "hold"))


# Speech


@pytest.mark.parametrize("overlap_s", [0.0, 0.16])
def test_audio_features_of_a_segment_are_those_of_the_whole_recording(overlap_s: float) -> None:
    context = 30
    encoder = AudioEncoder(AudioEncoderConfig(n_audio_ctx=context, n_audio_state=8, n_audio_head=2, n_audio_layer=1))
    n_frames = 2 * context  # four blocks
    samples = np.random.default_rng(1).normal(0, 0.1, n_frames * 640 - 431).astype(np.float32)

    def blocks() -> Iterator[NDArray[np.float32]]:
        yield from np.array_split(samples, 29)

    maximum = log_mel_maximum(blocks(), 80)
    whole = list(frame_windows(feature_rows(blocks, encoder, maximum=maximum, overlap_s=overlap_s), n_frames))
    assert len(whole) == n_frames
    for start in range(n_frames):
        first_block = first_block_of(start, encoder.config, overlap_s=overlap_s)
        assert first_block == max(0, start - 2 - (2 if overlap_s else 0)) // (15 - (4 if overlap_s else 0))
        rows = feature_rows(blocks, encoder, maximum=maximum, first_block=first_block, overlap_s=overlap_s)
        first_row = first_row_of(first_block, encoder.config, overlap_s)
        part = list(frame_windows(rows, 7, start, first_row))[: n_frames - start]
        assert all(torch.equal(a, b) for a, b in zip(part, whole[start : start + 7], strict=True)), start


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_is_killed_again_and_again_makes_the_same_file(goldens: Path, clip: Path, tmp_path: Path) -> None:
    folder = make_model_folder(goldens, tmp_path / "model")
    speech = write_speech(tmp_path / "speech.wav", 1.5)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    words = [sys.executable, "-m", "helpers.killed", folder, clip, speech, tmp_path, "3"]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["digests"][0] == result["digests"][1]
    assert (len(result["pieces_after"]), result["work_is_left"]) == (3, False)
