"""What encodes the picture of a result: codec, software or hardware, quality, and the format of the samples."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from fractions import Fraction

import av
import av.error
from av.codec.codec import Codec, UnknownCodecError
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from lipstream.encoding_settings import EncoderName, EncodingSettings, VideoCodec
from lipstream.errors import OutputError
from lipstream.media.color import ColorTags
from lipstream.media.pixel_format import Layout, layout_of
from lipstream.media.processor import has_avx512
from lipstream.media.scheduling import scheduled_as_before

logger = logging.getLogger(__name__)

_SOFTWARE: dict[VideoCodec, str] = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
_HARDWARE: dict[str, tuple[EncoderName, ...]] = {"darwin": ("videotoolbox",), "win32": ("nvenc", "amf", "qsv")}
_HARDWARE_ELSEWHERE: tuple[EncoderName, ...] = ("nvenc", "qsv")

_EFFORTS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_SVT_PRESETS = (12, 11, 10, 9, 8, 7, 5, 4, 2)
_NVENC_PRESETS = (1, 1, 2, 2, 3, 4, 5, 6, 7)
_MOST_CRF = 51
_MOST_AV1_CRF = 63


@dataclass(frozen=True)
class PictureKind:
    """The pictures to encode: their size in pixels, frames a second, colour, pixel shape and layout."""

    width: int
    height: int
    frame_rate: Fraction
    color: ColorTags
    sample_aspect_ratio: Fraction
    layout: Layout


def add_picture_stream(container: OutputContainer, encoding: EncodingSettings, kind: PictureKind) -> VideoStream:
    """Add a stream for pictures to a file. Raises OutputError where the encoder that is asked for does not work."""
    name = _encoder_for(encoding, kind)
    stream = container.add_stream(name, rate=kind.frame_rate, options=_options(name, encoding))
    assert isinstance(stream, VideoStream)
    _describe(stream.codec_context, encoding, kind, name)
    if encoding.codec == "hevc" and container.format.name != "matroska":
        stream.codec_context.codec_tag = "hvc1"  # by which Apple's players know it
    if name == "libsvtav1":
        with scheduled_as_before():
            stream.codec_context.open()
    return stream


def _encoder_for(encoding: EncodingSettings, kind: PictureKind) -> str:
    """Return libav's name of the encoder to use."""
    software = _SOFTWARE[encoding.codec]
    if encoding.encoder == "software" or (encoding.encoder == "auto" and encoding.crf == 0):
        return software
    tried = _HARDWARE.get(sys.platform, _HARDWARE_ELSEWHERE) if encoding.encoder == "auto" else (encoding.encoder,)
    for hardware in tried:
        name = f"{encoding.codec}_{hardware}"
        if _works(name, encoding, kind):
            logger.info("the picture is encoded by %s", name)
            return name
    names = ", ".join(f"{encoding.codec}_{hardware}" for hardware in tried)
    if encoding.encoder != "auto":
        fix = "use --encoder auto or software, or another --pixel-format"
        raise OutputError(f"the encoder {names} does not work here for these pictures", fix=fix)
    logger.warning("no hardware encoder works here for these pictures (tried: %s): %s encodes them", names, software)
    return software


def _works(name: str, encoding: EncodingSettings, kind: PictureKind) -> bool:
    """Return whether an encoder takes such pictures on this machine, by having it open."""
    try:
        context = av.CodecContext.create(name, "w")
        assert isinstance(context, VideoCodecContext)
        _describe(context, encoding, kind, name)
        context.options = _options(name, encoding)
        context.framerate = kind.frame_rate
        context.open()
    except (av.error.FFmpegError, UnknownCodecError, OutputError, ValueError):
        return False
    return True


def _describe(context: VideoCodecContext, encoding: EncodingSettings, kind: PictureKind, name: str) -> None:
    context.width, context.height = kind.width + kind.width % 2, kind.height + kind.height % 2
    context.pix_fmt = pixel_format_for(name, encoding.pixel_format, kind.layout)
    context.time_base = 1 / kind.frame_rate
    context.sample_aspect_ratio = kind.sample_aspect_ratio
    if name == "libx264":
        context.thread_count = 0
        context.thread_type = "FRAME"  # slices cost size
    context.color_range = kind.color.range
    context.colorspace = kind.color.space
    context.color_primaries = kind.color.primaries
    context.color_trc = kind.color.transfer


def pixel_format_for(encoder: str, asked: str, layout: Layout) -> str:
    """Return the format that an encoder is given: the one asked for, or of those that it takes the nearest to `layout`.

    Raises OutputError where it does not take the one asked for.
    """
    formats = [fmt.name for fmt in Codec(encoder, "w").video_formats or ()]
    if asked != "auto":
        layout = _known(asked)
    best = min((name for name in formats if _is_planar_yuv(name)), key=lambda name: _loss(name, layout))
    if asked != "auto" and _loss(best, layout)[:4] != (0, 0, 0, 0):
        raise OutputError(f"the encoder {encoder} takes no pictures in {asked}", fix="use --pixel-format auto")
    if _loss(best, layout)[:2] != (0, 0):
        logger.info("%s takes no pictures in %s: they are encoded in %s", encoder, layout.name, best)
    return best


def _known(name: str) -> Layout:
    layout = layout_of(name)
    assert layout is not None  # the settings offer no others
    return layout


def _is_planar_yuv(name: str) -> bool:
    """Return whether a format is YUV in planes, without alpha and not tied to full range."""
    return name in _TWO_PLANES or (layout_of(name) is not None and not name.startswith(("yuva", "yuvj")))


_TWO_PLANES = {"nv12": (8, 2, 2), "p010le": (10, 2, 2), "p012le": (12, 2, 2)}
"""Formats whose chroma lies together: bits, and how many pixels across and down share a sample of it."""


def _loss(name: str, layout: Layout) -> tuple[int, int, int, int, int]:
    """Return what pictures lose in a format, by weight: bits, chroma; then what it has more; then another order."""
    found = layout_of(name)
    bits, across, down = _TWO_PLANES[name] if found is None else (found.bits, found.across, found.down)
    coarser = max(0, across - layout.across) + max(0, down - layout.down)
    finer = max(0, layout.across - across) + max(0, layout.down - down)
    return max(0, layout.bits - bits), coarser, max(0, bits - layout.bits), finer, int(found is None)


def _options(name: str, encoding: EncodingSettings) -> dict[str, str]:
    """Return an encoder's own options for the quality and effort that are asked for."""
    effort = _EFFORTS.index(encoding.x264_preset)
    if name == "libx264":
        options = {"preset": encoding.x264_preset, **({"qp": "0"} if encoding.crf == 0 else {"crf": str(encoding.crf)})}
        if has_avx512():
            options["x264-params"] = "asm=avx2"  # x264's newer code reads memory that nobody has written
        return options
    if name == "libx265":
        # The number of frames at once changes what comes out: it must not depend on the machine.
        parameters = "log-level=error:frame-threads=3" + (":lossless=1" if encoding.crf == 0 else "")
        return {"preset": encoding.x264_preset, "crf": str(encoding.crf), "x265-params": parameters}
    if name == "libsvtav1":
        options = {"preset": str(_SVT_PRESETS[effort]), "crf": str(round(encoding.crf * _MOST_AV1_CRF / _MOST_CRF))}
        return {**options, **({"svtav1-params": "lossless=1"} if encoding.crf == 0 else {})}
    quality = str(max(1, encoding.crf))
    if name.endswith("_nvenc"):
        if encoding.crf == 0:
            return {"preset": f"p{_NVENC_PRESETS[effort]}", "tune": "lossless"}
        return {"preset": f"p{_NVENC_PRESETS[effort]}", "tune": "hq", "rc": "vbr", "cq": quality, "b": "0"}
    if name.endswith("_qsv"):
        return {"preset": "medium", "global_quality": quality}
    if name.endswith("_amf"):
        return {"quality": "balanced", "rc": "cqp", "qp_i": quality, "qp_p": quality}
    # VideoToolbox counts from 1, the worst, to 100.
    return {"flags": "+qscale", "global_quality": str(118 * round(100 - 100 * encoding.crf / _MOST_CRF))}
