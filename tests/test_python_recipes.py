"""The recipes of docs/python.md, as they stand there."""

from __future__ import annotations

import itertools
import re
import wave
from pathlib import Path
from typing import Any

import pytest

from lipstream.bundled import sample
from lipstream.media.reader import probe, read_frames
from lipstream.media.writer import VideoWriter

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in PAGE.split("\n## ")[1:]}
N_FRAMES = 6


@pytest.fixture(scope="module")
def beginning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the first frames and the first speech of the bundled sample as files."""
    folder = tmp_path_factory.mktemp("sample")
    info = probe(sample.VIDEO)
    video, speech = folder / "video.mp4", folder / "speech.wav"
    with VideoWriter(
        video, width=info.width, height=info.height, color=info.color, speech=None, n_frames=N_FRAMES
    ) as writer:
        for frame in itertools.islice(read_frames(sample.VIDEO), N_FRAMES):
            writer.write(frame.image)
    with wave.open(str(sample.SPEECH), "rb") as whole, wave.open(str(speech), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(whole.getframerate() * N_FRAMES // 25))
    return video, speech


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_there_are_seven_recipes() -> None:
    assert [len(blocks(text)) for text in SECTIONS.values()] == [1] * 7


@pytest.mark.parametrize("title", SECTIONS)
def test_a_recipe_runs(
    title: str,
    beginning: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(blocks(PAGE)[0], "docs/python.md", "exec"), names)
    assert (names["video"], names["speech"]) == (sample.VIDEO, sample.SPEECH)
    names["video"], names["speech"] = beginning
    if title.startswith("Progress"):
        names["video"], names["speech"] = sample.VIDEO, sample.SPEECH  # long enough to be cancelled
    exec(compile(blocks(SECTIONS[title])[0], "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    check = CHECKS[title.split(",")[0]]
    check(names, printed, {path.name for path in tmp_path.iterdir()})


def _file_to_file(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    assert printed[0].startswith(f"{N_FRAMES} frames,")
    assert files == {"out.mp4"}


def _in_memory(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    assert printed == ["(512, 512, 3) uint8"] * N_FRAMES


def _cancelled(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    assert printed[0].startswith("0 of ")
    assert printed[-1] == "nothing is left of cancelled.mp4"
    assert files == set()


def _several(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    assert files == {"one.mp4", "two.mp4", "three.mp4"}


def _many(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    assert printed == ["seed-1.mp4 done None", "seed-2.mp4 done None"]
    assert files == {"known.mp4", "seed-1.mp4", "seed-2.mp4", "long.mp4"}


def _crops(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    shapes = [line for line in printed if "(128, 128, 3)" in line]
    assert [line.split()[0] for line in shapes] == [str(index) for index in range(N_FRAMES)]


def _faces(names: dict[str, Any], printed: list[str], files: set[str]) -> None:
    assert len(names["by_box"]) == len(names["by_callback"]) == len(names["by_own_detector"]) == N_FRAMES
    assert all((one == other).all() for one, other in zip(names["by_box"], names["by_callback"], strict=True))
    assert (names["by_box"][0] != names["by_own_detector"][0]).any()


CHECKS = {
    "From file to file": _file_to_file,
    "Frames in memory": _in_memory,
    "Progress": _cancelled,
    "Several clips": _several,
    "Many clips": _many,
    "Only the crops and their matrices": _crops,
    "Choosing a face": _faces,
}
