"""Little clips and recordings for the media tests, made on the spot with PyAV."""

from __future__ import annotations

import contextlib
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

WIDTH, HEIGHT = 192, 32
N_BITS = 12
BIT_WIDTH = WIDTH // N_BITS


def numbered_image(number: int) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3) picture that shows `number` as a row of light and dark blocks."""
    bits = [(number >> bit) & 1 for bit in range(N_BITS)]
    row = np.repeat(np.where(bits, 220, 30), BIT_WIDTH).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)))


def number_of(image: NDArray[np.uint8]) -> int:
    """The number that a (possibly compressed) numbered_image shows."""
    blocks = image[8:24].mean((0, 2)).reshape(N_BITS, BIT_WIDTH)[:, 4:12].mean(1)
    return int(sum(1 << bit for bit in range(N_BITS) if blocks[bit] > 128))


def write_numbered(
    path: Path,
    pts: list[int],
    time_base: Fraction,
    *,
    codec: str = "libx264",
    with_sound: bool = False,
    sound_s: float = 0,
    rate: int | Fraction = 25,
    **options: str,
) -> Path:
    """A clip of numbered pictures shown at the given times; with_sound: silence as long, or `sound_s`."""
    options = {"crf": "10", "preset": "ultrafast", **options} if codec == "libx264" else options
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = time_base
        sound = container.add_stream("aac", rate=16000, layout="mono") if with_sound else None
        for number, time in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered_image(number), format="rgb24")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            n_samples = int((sound_s or pts[-1] * time_base) * 16000) + 1000
            silence = np.zeros((1, n_samples), np.float32)
            block = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))
    return path


def write_images(
    path: Path,
    images: list[NDArray[np.uint8]],
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    source_format: str = "rgb24",
    **options: str,
) -> Path:
    """A 25 fps clip of any pictures, lossless unless another codec is named."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=source_format)))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) into the track header of an mp4: x' = a x + c y, y' = b x + d y, y pointing down."""
    a, b, c, d = (value * 0x10000 for value in matrix)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: flags, times, track, duration, layer, volume
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content)


def wipe_pictures(path: Path, kept: Fraction) -> None:
    """Overwrite the coded pictures of an mp4 with zeros, but for the first `kept` part of their bytes."""
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    (size,) = struct.unpack(">I", content[start - 8 : start - 4])
    end = start - 8 + size
    first = start + int((end - start) * kept)
    content[first:end] = bytes(end - first)
    path.write_bytes(content)


def write_wav(path: Path, samples: NDArray[np.int16], sample_rate_hz: int) -> Path:
    """A 16-bit recording; `samples` is (n,) or (n, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_float_wav(path: Path, samples: NDArray[np.floating], sample_rate_hz: int) -> Path:
    """A mono recording of float32 or float64 samples (n,), whatever their values."""
    n_bytes = samples.dtype.itemsize
    content = samples.astype(f"<f{n_bytes}").tobytes()
    header = struct.pack("<HHIIHH", 3, 1, sample_rate_hz, sample_rate_hz * n_bytes, n_bytes, 8 * n_bytes)
    chunks = b"WAVEfmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(content)) + content
    path.write_bytes(b"RIFF" + struct.pack("<I", len(chunks)) + chunks)
    return path


def n_open(path: Path) -> int:
    """How many file descriptors of this process lead to `path` or, for a folder, to files in it, removed ones too."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    targets = []
    for link in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            targets.append(link.readlink())
    return sum(target == path or path in target.parents for target in targets)


def clicks(duration_s: float, sample_rate_hz: int) -> NDArray[np.int16]:
    """Silence with a few short noises at odd places: shows any shift in time."""
    rng = np.random.default_rng(0)
    samples = np.zeros(round(duration_s * sample_rate_hz))
    n = round(0.02 * sample_rate_hz)
    for place in (0.11, 0.43, 0.79):
        start = int(place * len(samples))
        samples[start : start + n] += 0.3 * rng.standard_normal(n) * np.hanning(n)
    return np.round(samples.clip(-1, 1) * 32767).astype(np.int16)


def lag(decoded: NDArray[np.float32], original: NDArray[np.float32]) -> int:
    """By how many samples `decoded` comes later than `original`."""
    n = len(decoded) + len(original)
    correlation = np.fft.irfft(np.fft.rfft(decoded, n) * np.conj(np.fft.rfft(original, n)), n)
    place = int(np.argmax(correlation))
    return place if place < n // 2 else place - n


def smooth_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A colourful picture without fine detail, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(x * fx / width + y * fy / height + phase) for fx, fy, phase in rng.uniform([2, 2, 0], [6, 6, 6], (3, 3))
    ]
    return np.round(np.stack(waves, -1) * 60 + 120).astype(np.uint8)
