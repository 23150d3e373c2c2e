"""Files made to hurt: each ends in one line, soon and in little memory."""

from __future__ import annotations

import json
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from helpers.media import clicks, write_numbered, write_wav
from lipstream.errors import InputError, LipstreamError, ModelError
from lipstream.media.audio import probe_speech, read_mono
from lipstream.media.reader import probe, read_frames
from lipstream.models.checkpoint import read_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import fuzz


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG that claims a size and holds some black rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * rows)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height", "rows"), [(100_000, 100_000, 1), (9000, 9000, 1)])
def test_enormous_pictures_are_refused(width: int, height: int, rows: int, tmp_path: Path) -> None:
    (tmp_path / "huge.png").write_bytes(png(width, height, rows))
    with pytest.raises(InputError, match=r"too large|can be decoded"):
        probe(tmp_path / "huge.png")


def test_a_recording_that_claims_four_gigabytes_is_as_long_as_it_is(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", clicks(0.5, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xf0"
    path.write_bytes(content)
    assert probe_speech(path).n_samples == 8000


def test_a_safetensors_header_of_absurd_size_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    tensor = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for content in (struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", len(tensor)) + tensor + bytes(8)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            read_tensors(path, None)


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    from fractions import Fraction

    sources = [
        write_numbered(tmp_path / "a.mp4", [*range(8)], Fraction(1, 25), with_sound=True),
        write_numbered(tmp_path / "a.mkv", [*range(8)], Fraction(1, 25)),
        write_numbered(tmp_path / "a.avi", [*range(8)], Fraction(1, 25), codec="mpeg4"),
        write_wav(tmp_path / "a.wav", clicks(0.2, 16000), 16000),
    ]
    rng = random.Random(0)
    for index in range(60):
        source = rng.choice(sources)
        path = tmp_path / f"damaged-{index}{source.suffix}"
        path.write_bytes(fuzz.mutated(source.read_bytes(), rng))
        assert fuzz.read_everything(path) in ("read", "refused")


def test_no_error_but_lipstreams_own_comes_out_of_rubbish(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in (".mp4", ".wav", ".jpg", ".webm", ".h264"):
        path = tmp_path / f"rubbish{suffix}"
        path.write_bytes(rng.bytes(5000))
        for read in (lambda p: list(read_frames(p)), lambda p: list(read_mono(p)), probe, probe_speech):
            try:
                read(path)
            except LipstreamError:
                continue
