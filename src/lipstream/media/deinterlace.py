"""Whole pictures out of interlaced ones, by libav's bwdif: a picture in, a picture out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import av.error
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lipstream.settings import Deinterlace

T = TypeVar("T")


def deinterlaced(
    frames: Iterable[tuple[T, VideoFrame]], stream: VideoStream, how: Deinterlace
) -> Iterator[tuple[T, VideoFrame]]:
    """Yield the frames of a stream, those deinterlaced that say that they are interlaced, or all; each with its item.

    From the first of them on, frames come one late: the next one is looked at too.
    """
    graph: _Graph | None = None
    waiting: deque[T] = deque()
    for item, frame in frames:
        is_due = how == "always" or (how == "auto" and frame.interlaced_frame)
        if graph is None and not is_due:
            yield item, frame
            continue
        if graph is None or not graph.fits(frame):
            yield from _rest(graph, waiting)
            graph = _Graph(frame, stream, how)
        waiting.append(item)
        for whole in graph.push(frame):
            yield waiting.popleft(), whole
    yield from _rest(graph, waiting)


def _rest(graph: _Graph | None, waiting: deque[T]) -> Iterator[tuple[T, VideoFrame]]:
    for whole in graph.push(None) if graph is not None else ():
        if waiting:
            yield waiting.popleft(), whole
    waiting.clear()


class _Graph:
    """bwdif for frames of one size and format."""

    def __init__(self, first: VideoFrame, stream: VideoStream, how: Deinterlace) -> None:
        self._layout = (first.width, first.height, first.format.name)
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=stream.time_base
        )
        which = "all" if how == "always" else "interlaced"
        bwdif = self._graph.add("bwdif", f"mode=send_frame:parity=auto:deint={which}")
        sink = self._graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        self._graph.configure()

    def fits(self, frame: VideoFrame) -> bool:
        return self._layout == (frame.width, frame.height, frame.format.name)

    def push(self, frame: VideoFrame | None) -> Iterator[VideoFrame]:
        """Yield what comes out once a frame, or None for the end, has gone in."""
        self._graph.vpush(frame)
        while True:
            try:
                yield self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
