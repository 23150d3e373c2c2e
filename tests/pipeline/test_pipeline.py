"""The straight line on real files, with a small model of the published layout and landmarks that are known."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers.pipeline import FAST, LONG, KnownFace, psnr_db, read_images, slow_steps, write_clip, write_speech
from lipstream import InputError, LipSync, NoFaceError, OutputError, RuntimeSettings, SettingsError, SyncSettings
from lipstream.errors import Cancelled, OutOfMemoryError
from lipstream.models.load import Model
from lipstream.pipeline.file_job import probe_inputs
from lipstream.pipeline.records import Aligned
from lipstream.pipeline.windows import batches, gather
from lipstream.runtime.device import FaceGeometry
from lipstream.runtime.memory import is_out_of_memory
from lipstream.runtime.options import RuntimeFields


def test_a_clip_is_synced_whole(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.77, 44100, channels=2)
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (clip, speech)]
    progress: list[Any] = []
    result = sync(clip, speech, tmp_path / "out.mp4", on_progress=progress.append)

    assert result.frames == round(25 * 0.77) == 19
    assert (result.frames_with_face, result.frames_without) == (19, 0)
    assert result.duration_s == 19 / 25
    assert result.real_time_factor == pytest.approx(result.wall_s / result.duration_s)
    assert [stage.frames for stage in result.stages] == [19] * 8
    assert {p.n_frames for p in progress} == {19}
    assert (progress[0].frames, [stage.frames for stage in progress[0].stages]) == (0, [0] * 8)
    assert (progress[-1].frames, [stage.frames for stage in progress[-1].stages]) == (19, [19] * 8)
    assert before == [hashlib.sha256(path.read_bytes()).hexdigest() for path in (clip, speech)]

    with av.open(str(tmp_path / "out.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (audio.rate, audio.channels) == (44100, 2)
        assert "Made with AI" in container.metadata["comment"]
        assert "model small" in container.metadata["comment"]
    assert len(read_images(tmp_path / "out.mp4")) == 19
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4", "speech.wav"]


def test_only_the_face_changes(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    sync(clip, write_speech(tmp_path / "speech.wav", 0.4), tmp_path / "out.mp4")
    before, after = read_images(clip)[0], read_images(tmp_path / "out.mp4")[0]
    assert psnr_db(before[:, 300:], after[:, 300:]) > 35
    assert psnr_db(before[60:170, 110:230], after[60:170, 110:230]) < 30


def test_the_encoder_takes_its_preset(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.4)
    sizes = []
    for preset in ("ultrafast", "medium"):
        result = sync(clip, speech, tmp_path / f"{preset}.mp4", settings=replace(FAST, x264_preset=preset))
        assert result.settings["x264_preset"] == preset
        sizes.append((tmp_path / f"{preset}.mp4").stat().st_size)
    assert sizes[0] > sizes[1]
    with pytest.raises(SettingsError, match="x264_preset = 'quick': must be one of ultrafast, "):
        replace(FAST, x264_preset="quick")


@pytest.mark.parametrize("threads", [1, 8])
def test_threads_do_not_change_the_result(sync: Callable[..., Any], clip: Path, tmp_path: Path, threads: int) -> None:
    speech = write_speech(tmp_path / "speech.wav", 1.0)
    sync(clip, speech, tmp_path / "two.mp4", threads=2)
    sync(clip, speech, tmp_path / "other.mp4", threads=threads)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()


def test_windows_in_one_call_give_the_same_pictures(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech.wav", 1.5)
    settings = replace(FAST, guidance_scale=1.5)
    sync(clip, speech, tmp_path / "one.mp4", settings=settings)
    sync(clip, speech, tmp_path / "two.mp4", settings=settings, batch=2)
    one, two = read_images(tmp_path / "one.mp4"), read_images(tmp_path / "two.mp4")
    assert len(one) == len(two) == 38
    assert min(psnr_db(a, b) for a, b in zip(one, two, strict=True)) > 50


@pytest.mark.parametrize("frames", [4, 16])
def test_frames_worked_on_together_as_on_a_gpu_give_the_same_pictures(
    sync: Callable[..., Any],
    recorded: dict[str, NDArray[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
) -> None:
    face = recorded["frames"][0]
    clip = write_clip(tmp_path / "clip.mp4", [face] * 3 + [np.full_like(face, 8)] * 6 + [face] * 12)
    speech = write_speech(tmp_path / "speech.wav", 21 / 25)
    sync(clip, speech, tmp_path / "alone.mp4")
    together = FaceGeometry(torch.device("cpu"), threads=1, frames=frames)
    monkeypatch.setattr("lipstream.pipeline.build.face_geometry", lambda _: together)
    result = sync(clip, speech, tmp_path / "together.mp4")
    assert (result.frames_with_face, result.frames_without) == (15, 6)
    assert [stage.frames for stage in result.stages] == [21] * 8
    one, other = read_images(tmp_path / "alone.mp4"), read_images(tmp_path / "together.mp4")
    assert min(psnr_db(a, b) for a, b in zip(one, other, strict=True)) > 50


def test_auto_takes_one_window_per_call_on_a_cpu(
    model: Model, recorded: dict[str, NDArray[Any]], clip: Path, tmp_path: Path
) -> None:
    sync = LipSync(model, KnownFace(recorded["landmarks"][0]), RuntimeSettings(device="cpu", batch="auto"))
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    assert sync(clip, speech, tmp_path / "out.mp4", FAST).settings["batch"] == 1


def test_the_same_seed_is_the_same_file_and_another_is_not(
    sync: Callable[..., Any], clip: Path, tmp_path: Path
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.4)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sync(clip, speech, tmp_path / f"{name}.mp4", settings=replace(FAST, seed=seed))
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_frames_without_a_face_pass_through_and_are_counted(
    sync: Callable[..., Any], recorded: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    face = recorded["frames"][0]
    dark = np.full_like(face, 8)
    dark[::16] = 30
    images = [face] * 3 + [dark] * 4 + [face] * 5 + [dark] * 3
    clip = write_clip(tmp_path / "clip.mp4", images)
    speech = write_speech(tmp_path / "speech.wav", 15 / 25)
    result = sync(clip, speech, tmp_path / "out.mp4")
    assert (result.frames_with_face, result.frames_without) == (8, 7)
    assert result.spans_without == ((3, 6), (12, 14))
    written = read_images(tmp_path / "out.mp4")
    assert len(written) == 15
    for index, source in enumerate(read_images(clip)):
        untouched = psnr_db(source, written[index]) > 40
        assert untouched == (images[index] is dark), index

    with pytest.raises(NoFaceError, match="frame 3"):
        sync(clip, speech, tmp_path / "strict.mp4", settings=replace(FAST, no_face="error"))
    assert not (tmp_path / "strict.mp4").exists()


def test_a_video_without_a_face_is_an_error_that_counts(sync: Callable[..., Any], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [np.zeros((96, 128, 3), np.uint8)] * 50)
    speech = write_speech(tmp_path / "speech.wav", 1.6)
    with pytest.raises(NoFaceError, match="no usable face in the 40 frames searched"):
        sync(clip, speech, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "speech.wav"]


def test_longer_speech_plays_back_and_forth(
    sync: Callable[..., Any], clip: Path, model: Model, recorded: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 2.0)
    detector = KnownFace(recorded["landmarks"][0])
    result = LipSync(model, detector, RuntimeSettings(device="cpu"))(clip, speech, tmp_path / "out.mp4", FAST)
    assert result.frames == 50
    assert detector.calls == 1 + 20  # the first frame before the rest; a repeated frame is not searched again
    source, written = read_images(clip), read_images(tmp_path / "out.mp4")
    order = [*range(20), *reversed(range(20)), *range(10)]
    outside = np.s_[:, 300:]
    for index, source_index in enumerate(order):
        errors = [np.abs(written[index][outside].astype(int) - image[outside]).mean() for image in source[:5]]
        assert int(np.argmin(errors)) == source_index % 5, index

    assert sync(clip, speech, tmp_path / "hold.mp4", settings=replace(FAST, loop="hold")).frames == 50
    assert sync(clip, speech, tmp_path / "trim.mp4", settings=replace(FAST, loop="trim")).frames == 20


def test_the_whole_frame_is_searched_as_often_as_asked(
    model: Model, recorded: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [recorded["frames"][i % 3] for i in range(20)])
    speech, written = write_speech(tmp_path / "speech.wav", 1.0), []
    for threads in (1, 4):
        detector = KnownFace(recorded["landmarks"][0])
        sync = LipSync(model, detector, RuntimeSettings(device="cpu", threads=threads))
        result = sync(clip, speech, tmp_path / f"{threads}.mp4", replace(FAST, detect_every=8))
        assert result.settings["detect_every"] == 8
        assert detector.calls == 1 + 3  # frames 0, 8 and 16 of 20; the last five are repeats
        written.append(read_images(tmp_path / f"{threads}.mp4"))
    np.testing.assert_array_equal(*written)


def test_savings_in_denoising_are_reported_and_the_same_for_any_threads(
    sync: Callable[..., Any], clip: Path, tmp_path: Path
) -> None:
    speech, written = write_speech(tmp_path / "speech.wav", 0.4), []
    saving = SyncSettings(
        num_inference_steps=4,
        guidance_scale=1.5,
        scheduler="unipc",
        step_cache=2,
        guidance_interval=(0.0, 0.5),
        resolution=128,
        crf=0,
    )
    for threads in (1, 3):
        result = sync(clip, speech, tmp_path / f"{threads}.mp4", settings=saving, threads=threads)
        reported = {
            name: result.settings[name] for name in ("scheduler", "step_cache", "guidance_interval", "resolution")
        }
        assert reported == {
            "scheduler": "unipc",
            "step_cache": 2,
            "guidance_interval": (0.0, 0.5),
            "resolution": 128,
        }
        written.append(read_images(tmp_path / f"{threads}.mp4"))
    np.testing.assert_array_equal(*written)

    own = sync(clip, speech, tmp_path / "own.mp4").settings
    assert (own["scheduler"], own["step_cache"], own["guidance_interval"]) == ("ddim", 1, (0.0, 1.0))
    assert (own["resolution"], own["detect_every"]) == (64, 1)


def test_what_is_probed_is_not_probed_again(
    sync: Callable[..., Any], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    inputs = probe_inputs(clip, speech, tmp_path / "out.mp4", overwrite=False)
    monkeypatch.delattr("lipstream.pipeline.file_job.probe")
    monkeypatch.delattr("lipstream.pipeline.file_job.probe_speech")
    assert sync(inputs.video, inputs.speech, tmp_path / "out.mp4").frames == 5


def test_a_wrong_field_is_named_with_what_comes_near() -> None:
    with pytest.raises(SettingsError, match=r"'devise' is not a field .* did you mean device"):
        LipSync.load("tiny", devise="cpu")  # type: ignore[call-arg]
    assert set(RuntimeFields.__annotations__) == {field.name for field in fields(RuntimeSettings)}


def test_out_of_memory_takes_smaller_batches_first(
    sync: Callable[..., Any], clip: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = write_speech(tmp_path / "speech.wav", 2.6)
    sync(clip, speech, tmp_path / "one.mp4")
    step, most = model.unet.step, 16
    calls: list[int] = []

    def limited(latents: torch.Tensor, *args: Any) -> Any:
        calls.append(len(latents))
        if len(latents) > most:
            torch.empty(2**48, dtype=torch.float64)  # what the allocator itself says
        return step(latents, *args)

    monkeypatch.setattr(model.unet, "step", limited)
    sync(clip, speech, tmp_path / "four.mp4", batch=4)
    assert sorted(calls) == [1, 16, 16, 16, 16, 32, 64]  # two retries, and half from there on
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "four.mp4").read_bytes()

    most = 0
    with pytest.raises(OutOfMemoryError, match=r"out of memory on the host\. Fix: use --batch 1, then --precision"):
        sync(clip, speech, tmp_path / "none.mp4", batch=2)
    assert not (tmp_path / "none.mp4").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.17 GB, other allocations: 1.2 GB)"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_kind_of_too_little_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_no_face_is_reported_without_an_encode(
    sync: Callable[..., Any], recorded: dict[str, NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dark, face = np.full_like(recorded["frames"][0], 8), recorded["frames"][0]
    speech = write_speech(tmp_path / "speech.wav", 4)
    late = write_clip(tmp_path / "late.mp4", [dark] * 20 + [face] * 5)
    for detect_every in (1, 8):
        settings = replace(FAST, detect_every=detect_every, loop="trim")
        result = sync(late, speech, tmp_path / f"late-{detect_every}.mp4", settings=settings)
        assert (result.frames_with_face, result.frames_without) == (5, 20)
        assert [stage.frames for stage in result.stages] == [25] * 8
    with pytest.raises(NoFaceError, match="no usable face in frame 0"):
        sync(late, speech, tmp_path / "strict.mp4", settings=replace(FAST, no_face="error"))

    never = write_clip(tmp_path / "never.mp4", [dark] * 30)
    monkeypatch.setattr(
        "lipstream.pipeline.file_job.VideoWriter", lambda *args, **words: pytest.fail("an output was begun")
    )
    with pytest.raises(NoFaceError, match="no usable face in the 30 frames searched"):
        sync(never, speech, tmp_path / "out.mp4")


def test_the_least_memory_suffices_for_any_clip(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """Faces and none in turns fill windows slowest; were there too few frames to fill one, nothing would go on."""
    images = read_images(clip)
    dark = np.full_like(images[0], 8)
    gaps = write_clip(tmp_path / "gaps.mp4", [images[0], *([dark] * 40), images[1], *([images[2], dark] * 24)])
    speech = write_speech(tmp_path / "speech.wav", 90 / 25)
    written = []
    for batch, threads, megabytes in ((1, 2, 512), (1, 8, 1), (2, 2, 1)):
        cancel = threading.Event()
        too_late = threading.Timer(60, cancel.set)
        too_late.start()
        output = tmp_path / f"{batch}-{megabytes}.mp4"
        sync(gaps, speech, output, threads=threads, batch=batch, frame_memory_mb=megabytes, cancel=cancel)
        too_late.cancel()
        written.append(read_images(output))
    np.testing.assert_array_equal(written[0], written[1])
    assert len(written[2]) == 90


def test_frames_in_flight_are_bounded_in_bytes_whatever_the_threads(
    model: Model, recorded: dict[str, NDArray[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [recorded["frames"][i % 3] for i in range(200)])
    speech = write_speech(tmp_path / "speech.wav", 8)
    slow_steps(model, monkeypatch, 1.0)
    cancel = threading.Event()
    frame_bytes = recorded["frames"][0].nbytes // 2 + 64 * 64 * (3 + 4 * 4)
    needed = 2 * 16 + 1
    for threads, megabytes, most in ((2, 1, needed), (64, 1, needed), (64, 25, 25_000_000 // frame_bytes)):
        cancel.clear()
        detector = KnownFace(recorded["landmarks"][0])
        runtime = RuntimeSettings(device="cpu", threads=threads, frame_memory_mb=megabytes)
        sync = LipSync(model, detector, runtime)
        ends = threading.Timer(1.5, cancel.set)
        ends.start()
        with pytest.raises(Cancelled):
            sync(clip, speech, tmp_path / "out.mp4", LONG, cancel=cancel)
        ends.join()
        assert most - 8 <= detector.calls - 1 <= most


def test_outputs_that_must_not_be_written(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    with pytest.raises(OutputError, match="also an input"):
        sync(clip, speech, clip, overwrite=True)
    (tmp_path / "out.mp4").write_bytes(b"mine")
    with pytest.raises(OutputError, match="already exists"):
        sync(clip, speech, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"mine"
    sync(clip, speech, tmp_path / "out.mp4", overwrite=True)
    assert len(read_images(tmp_path / "out.mp4")) == 5


def test_speech_that_is_too_short_is_refused(sync: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"speech\.wav"):
        sync(clip, write_speech(tmp_path / "speech.wav", 0.005), tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def aligned(has_face: bool) -> Aligned:
    crop = torch.zeros(3, 1, 1, dtype=torch.uint8) if has_face else None
    return Aligned(frame=None, affine_matrix=None, crop=crop)  # type: ignore[arg-type]


def test_windows_are_full_of_faces_and_bounded_without() -> None:
    audio = torch.zeros(1000, 1, 1)
    full = list(gather([aligned(True)] * 40, audio, 16))
    assert [window.faces for window in full] == [16, 16, 8]
    mixed = list(gather([aligned(i % 3 != 0) for i in range(40)], audio, 16))
    assert [window.faces for window in mixed] == [16, 10]
    assert all(len(window.audio) == window.faces for window in mixed)
    none = list(gather([aligned(False)] * 100, audio, 16))
    assert max(len(window.frames) for window in none) == 32
    assert sum(len(window.frames) for window in none) == 100


def test_windows_of_different_lengths_never_share_a_call() -> None:
    windows = list(gather([aligned(True)] * 87, torch.zeros(87, 1, 1), 16))
    assert [[w.faces for w in group] for group in batches(windows, 3)] == [[16] * 3, [16] * 2, [7]]
