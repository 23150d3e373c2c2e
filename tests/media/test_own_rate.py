"""Results at the video's own frame rate: every frame once, the speech beside it in time, features between rows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from helpers.media import number_of, write_numbered
from lipstream.audio_features.features import frame_windows
from lipstream.errors import SettingsError
from lipstream.media.frame_rate import Timed, constant_rate, nominal_rate, round_half_away
from lipstream.media.reader import probe, read_frames
from lipstream.settings import SyncSettings

MS = Fraction(1, 1000)
OWN = SyncSettings(frame_rate="source")


@pytest.mark.parametrize("rate", ["24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "webm"])
def test_every_frame_is_shown_once_at_its_own_rate(rate: str, container: str, tmp_path: Path) -> None:
    step = 1 / Fraction(rate)
    if container == "mp4":
        pts, time_base = [i * step.numerator for i in range(90)], Fraction(1, step.denominator)
    else:  # whole milliseconds
        pts, time_base = [round(i * step * 1000) for i in range(90)], MS
    codec = "libvpx" if container == "webm" else "libx264"
    options = {"deadline": "realtime", "b": "2000000"} if container == "webm" else {}
    clip = write_numbered(tmp_path / f"clip.{container}", pts, time_base, codec=codec, rate=Fraction(rate), **options)
    own_hz = OWN.rate_hz(probe(clip).nominal_rate, model_departs=False)
    assert own_hz == Fraction(rate)
    shown = [number_of(frame.image) for frame in read_frames(clip, own_hz)]
    # Against times rounded to milliseconds a frame may be shown a little early or late, never left out for long.
    assert abs(len(shown) - 90) <= 1 and len(set(shown)) >= 89
    assert all(abs(number - i) <= 1 for i, number in enumerate(shown))


def test_a_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    pts = [20 * i if i < 40 else 20 * i + 500 for i in range(100)]
    clip = write_numbered(tmp_path / "clip.mp4", pts, MS, bf="3", preset="veryfast")
    own_hz = OWN.rate_hz(probe(clip).nominal_rate, model_departs=False)
    assert own_hz == 50
    shown = [number_of(frame.image) for frame in read_frames(clip, own_hz)]
    assert set(shown) == {*range(100)}
    for number, time_ms in enumerate(pts):
        assert abs(shown.index(number) * 20 - time_ms) <= 40


@pytest.mark.parametrize(
    ("average", "base", "expected"),
    [
        (Fraction(30), Fraction(30), Fraction(30)),
        (Fraction(2997, 100), Fraction(2997, 100), Fraction(30000, 1001)),
        (Fraction(75, 2), Fraction(50), Fraction(50)),
        (Fraction(25), Fraction(90000), Fraction(25)),
        (Fraction(25), Fraction(50), Fraction(25)),
        (None, Fraction(30), Fraction(30)),
        (None, None, Fraction(0)),
    ],
)
def test_the_nominal_rate_is_the_one_of_the_quicker_parts(
    average: Fraction | None, base: Fraction | None, expected: Fraction
) -> None:
    assert nominal_rate(average, base) == expected


@pytest.mark.parametrize(
    ("choice", "own_hz", "departs", "expected"),
    [
        (None, Fraction(30), True, Fraction(30)),
        (None, Fraction(30), False, Fraction(25)),
        ("source", Fraction(60000, 1001), False, Fraction(60000, 1001)),
        ("source", Fraction(1), False, Fraction(25)),
        ("source", Fraction(1000), False, Fraction(25)),
        ("source", Fraction(0), False, Fraction(25)),
        ("25", Fraction(30), True, Fraction(25)),
        ("29.97", Fraction(25), True, Fraction(30000, 1001)),
        ("23.976", Fraction(25), True, Fraction(24000, 1001)),
        ("30000/1001", Fraction(25), True, Fraction(30000, 1001)),
        ("12.5", Fraction(25), True, Fraction(25, 2)),
    ],
)
def test_the_rate_is_chosen(choice: str | None, own_hz: Fraction, departs: bool, expected: Fraction) -> None:
    assert SyncSettings(frame_rate=choice).rate_hz(own_hz, model_departs=departs) == expected


@pytest.mark.parametrize("choice", ["", "0", "121", "-25", "1/0", "fast", "1e3", "nan", "25/"])
def test_other_rates_are_refused(choice: str) -> None:
    with pytest.raises(SettingsError, match="frame_rate = "):
        SyncSettings(frame_rate=choice)


def test_features_lie_between_rows_at_the_frames_time() -> None:
    rows = torch.arange(600.0)[:, None, None].expand(600, 2, 3)
    for rate in (Fraction(24000, 1001), Fraction(30), Fraction(50), Fraction(60)):
        windows = list(frame_windows(iter(rows.split(7)), 100, frame_rate=rate))
        assert len(windows) == 100
        for i in (20, 57, 99):
            expected = float(50 * i / rate) + torch.arange(-4.0, 6.0)
            assert torch.allclose(windows[i][::2, 0], expected, atol=1e-3), (rate, i)
    exact = list(frame_windows(iter(rows.split(7)), 100, frame_rate=25))
    assert all(torch.equal(a, b) for a, b in zip(exact, frame_windows([rows], 100), strict=True))


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(50)])
@pytest.mark.parametrize("time_base", [MS, Fraction(1, 90000)])
def test_nothing_drifts_in_ten_minutes(rate: Fraction, time_base: Fraction) -> None:
    n = round(600 * rate)
    times = [round_half_away(i / rate / time_base) for i in range(n + 1)]
    frames = [Timed(i, times[i], times[i + 1] - times[i], time_base) for i in range(n)]
    shown = [frame.item for frame in constant_rate(frames, rate, keep_initial_gap=False)]
    assert abs(len(shown) - n) <= 1
    assert max(abs(float((number - index) / rate)) for index, number in enumerate(shown)) < 0.02
