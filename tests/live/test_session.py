"""Live sessions with the real model: what comes out is what was pushed, with the mouths of the whole recording."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.pipeline import read_images, write_clip
from lipstream import Avatar, LipSync, LiveFrame, LiveSettings, SyncSettings, read_frames
from lipstream.bundled import sample
from lipstream.errors import InputError, SettingsError
from lipstream.live.session import PushSession
from lipstream.media.audio import read_mono

N_FRAMES = 12
RATE_HZ = 16000
AT_ONCE = LiveSettings(realtime=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", read_images(sample.VIDEO)[:N_FRAMES])


@pytest.fixture(scope="module")
def avatar(sync: LipSync, clip: Path) -> Avatar:
    return sync.prepare_avatar(clip, clip.with_suffix(".avatar"))


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    """20 frames of speech."""
    return np.concatenate(list(read_mono(sample.SPEECH)))[: 20 * RATE_HZ // 25]


def segment_of(session: Any) -> list[LiveFrame]:
    frames = []
    for frame in session:
        frames.append(frame)
        if frame.ends_segment:
            break
    return frames


def test_a_whole_segment_is_what_a_run_makes_of_it(
    sync: LipSync, clip: Path, avatar: Avatar, speech: NDArray[np.float32]
) -> None:
    expected = list(sync.frames([frame.image for frame in read_frames(clip)], speech, RATE_HZ))
    with sync.live(avatar, AT_ONCE) as session:
        session.push_audio(speech, RATE_HZ)
        session.end_segment()
        frames = segment_of(session)
        # The next segment goes on where the clip is.
        session.push_audio((speech[:1280] * 32767).astype(np.int16), RATE_HZ)
        session.end_segment()
        after = segment_of(session)
    assert np.array_equal(np.concatenate([frame.samples for frame in frames]), speech)
    assert [frame.time_s for frame in [*frames, *after]] == [n / 25 for n in range(22)]
    for frame, picture in zip(frames, expected, strict=True):
        assert frame.picture.dtype == np.uint8
        # Features are computed over other lengths at a time, which rounds differently.
        assert np.abs(frame.picture.astype(int) - picture).max() <= 2
        assert (frame.picture != picture).mean() < 0.01
    assert np.abs(np.concatenate([frame.samples for frame in after]) - speech[:1280]).max() < 1e-4
    assert [frame.ends_segment for frame in after] == [False, True]


def test_memory_is_given_back_once_a_segment_is_generated(
    sync: LipSync, avatar: Avatar, speech: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = list[int]()
    monkeypatch.setattr("lipstream.live.session.give_back_freed_memory", lambda: times.append(session.n_generated))
    with sync.live(avatar, AT_ONCE) as session:
        for count in (20, 4):
            session.push_audio(speech[: count * RATE_HZ // 25], RATE_HZ)
            session.end_segment()
            segment_of(session)
        deadline_s = time.monotonic() + 10
        while len(times) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert times == [20, 24]


def test_in_real_time_the_clip_idles_speaks_and_idles_again(
    sync: LipSync, avatar: Avatar, speech: NDArray[np.float32]
) -> None:
    spoken, idle = list[LiveFrame](), list[LiveFrame]()
    is_pushed, begun_s = False, time.monotonic()
    with sync.live(avatar) as session:
        for frame in session:
            (spoken if frame.is_speech else idle).append(frame)
            assert len(frame.samples) == frame.sample_rate_hz // 25
            assert frame.picture.shape == (512, 512, 3)
            if not is_pushed and len(idle) == 10:
                is_pushed = True
                for start in range(0, len(speech), 1000):
                    session.push_audio(np.stack([speech[start : start + 1000]] * 2, 1), RATE_HZ)
                session.end_segment()
            if spoken and spoken[-1].ends_segment and not frame.is_speech and len(idle) >= 2 * N_FRAMES + 10:
                break
        assert time.monotonic() - begun_s > 0.9 * frame.time_s  # not ahead of the clock
    played = np.concatenate([frame.samples for frame in spoken])
    assert np.array_equal(played[: len(speech)], speech)
    assert sum(frame.ends_segment for frame in spoken) == 1
    assert spoken[-1].ends_segment
    assert not any(frame.samples.any() for frame in idle)
    times = sorted(frame.time_s for frame in [*spoken, *idle])
    np.testing.assert_allclose(times, np.arange(len(times)) / 25)
    # Idle, with nothing to fade from, a frame is as it was prepared, forwards and backwards.

    left, top, closed = avatar.idle(4)
    shown = idle[4].picture[top : top + closed.shape[0], left : left + closed.shape[1]]
    assert np.array_equal(shown, closed)


def test_pictures_never_jump_between_idling_and_speech(
    sync: LipSync, avatar: Avatar, speech: NDArray[np.float32]
) -> None:
    frames = list[LiveFrame]()
    with sync.live(avatar) as session:
        session.push_audio(speech, RATE_HZ)
        session.end_segment()
        for frame in session:
            frames.append(frame)
            if any(one.ends_segment for one in frames[:-8]):
                break
    steps = [np.abs(two.picture.astype(int) - one.picture).mean() for one, two in itertools.pairwise(frames)]
    assert max(steps) < 3.0  # of 255: two frames of different people are some 60 apart


def test_an_interruption_acts_within_a_frame(sync: LipSync, avatar: Avatar, speech: NDArray[np.float32]) -> None:
    with sync.live(avatar) as session:
        session.push_audio(np.tile(speech, 5), RATE_HZ)
        frames = iter(session)
        while not next(frames).is_speech:
            pass
        session.interrupt()
        after = [next(frames) for _ in range(10)]
        assert not any(frame.is_speech or frame.samples.any() for frame in after)
        session.push_audio(speech, RATE_HZ)
        session.end_segment()
        again = next(frame for frame in frames if frame.is_speech)
        assert np.array_equal(again.samples, speech[: RATE_HZ // 25])


def test_frames_come_asynchronously_too(sync: LipSync, avatar: Avatar, speech: NDArray[np.float32]) -> None:
    async def played() -> tuple[list[LiveFrame], int]:
        n_turns, frames = 0, list[LiveFrame]()

        async def other() -> None:
            nonlocal n_turns
            while True:
                await asyncio.sleep(0)
                n_turns += 1

        beside = asyncio.create_task(other())
        with sync.live(avatar) as session:
            session.push_audio(speech, RATE_HZ)
            session.end_segment()
            async for frame in session:
                frames.append(frame)
                if frame.ends_segment:
                    break
        beside.cancel()
        return frames, n_turns

    frames, n_turns = asyncio.run(played())
    samples = np.concatenate([frame.samples for frame in frames if frame.is_speech])
    assert np.array_equal(samples, speech)
    assert n_turns >= len(frames)


def test_closing_ends_the_iteration_and_all_threads(sync: LipSync, avatar: Avatar) -> None:
    before = threading.enumerate()
    session = sync.live(avatar)
    taken = 0

    def take() -> None:
        nonlocal taken
        for _ in session:
            taken += 1

    taking = threading.Thread(target=take)
    taking.start()
    while taken < 3:
        time.sleep(0.01)
    session.close()
    session.close()
    taking.join(10)
    assert not taking.is_alive()
    assert set(threading.enumerate()) <= set(before)
    assert list(session) == []
    with pytest.raises(SettingsError, match="closed"):
        session.push_audio(np.zeros(10, np.float32), RATE_HZ)


def test_what_goes_wrong_in_a_thread_is_raised_where_frames_are_taken(
    sync: LipSync, avatar: Avatar, speech: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise InputError("it broke")

    monkeypatch.setattr(PushSession, "_pictures", broken)
    with sync.live(avatar) as session:
        session.push_audio(speech, RATE_HZ)
        with pytest.raises(InputError, match="it broke"):
            for _ in session:
                pass
    monkeypatch.undo()
    with sync.live(avatar) as session:  # and the next one is not disturbed
        next(iter(session))


def test_a_session_holds_its_turn_until_it_is_closed(
    sync: LipSync, avatar: Avatar, speech: NDArray[np.float32]
) -> None:
    with sync.live(avatar) as session:
        with pytest.raises(SettingsError, match="live session"):
            sync.live(avatar)
        next(iter(session))
    other = LipSync(sync.model, sync.detector, sync.runtime)
    session = other.live(avatar)
    next(iter(session))
    other.close()  # ends it
    assert list(session) == []


def test_what_is_pushed_is_checked(sync: LipSync, avatar: Avatar) -> None:
    with sync.live(avatar, AT_ONCE) as session:
        for bad, message in (
            (np.zeros(4, np.int32), "not float32 or int16"),
            (np.zeros((4, 100), np.float32), "channels"),
            (np.zeros((4, 1, 1), np.float32), "channels"),
        ):
            with pytest.raises(InputError, match=message):
                session.push_audio(bad, RATE_HZ)
        for rate_hz in (0, -1, 10**9):
            with pytest.raises(SettingsError, match="sample_rate_hz"):
                session.push_audio(np.zeros(4, np.float32), rate_hz)
        session.push_audio(np.zeros(0, np.float32), RATE_HZ)
        session.push_audio(np.zeros(640, np.float32), RATE_HZ)
        with pytest.raises(SettingsError, match="began with 16000"):
            session.push_audio(np.zeros(4, np.float32), 24000)
        session.end_segment()
        session.end_segment()
        session.push_audio(np.full(4000, np.nan, np.float32), 24000)
        session.end_segment()
        frames = [*segment_of(session), *segment_of(session)]
        assert [len(frame.samples) for frame in frames] == [640, *[960] * 5]
        assert not any(frame.samples.any() for frame in frames)
    with pytest.raises(SettingsError, match="look_ahead_s"):
        LiveSettings(look_ahead_s=-1)
    with pytest.raises(SettingsError, match="silence"):
        sync.live(avatar, LiveSettings(sync=SyncSettings(silence="closed")))
    with pytest.raises(SettingsError, match="resolution"):
        sync.live(avatar, LiveSettings(sync=SyncSettings(resolution=256)))


def test_frames_as_filmed_in_pauses(sync: LipSync, clip: Path, avatar: Avatar) -> None:
    filmed = [frame.image for frame in read_frames(clip)]
    with sync.live(avatar, LiveSettings(sync=SyncSettings(silence="keep"))) as session:
        for index, frame in zip(range(2 * N_FRAMES), session, strict=False):
            assert np.array_equal(frame.picture, filmed[min(index, 2 * N_FRAMES - 1 - index)])
