"""A visitor's connection: a live session whose frames go out over WebRTC, and what is to be said comes in."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from aiortc import MediaStreamTrack, RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.exceptions import InvalidAccessError, InvalidStateError, OperationError
from aiortc.mediastreams import MediaStreamError

from lipstream.errors import LipstreamError
from lipstream.live.frames import LiveSession
from lipstream.serve.live.speech import Speech
from lipstream.serve.live.tracks import PictureTrack, SoundTrack
from lipstream.serve.refused import Refused

logger = logging.getLogger(__name__)

_CONNECT_S = 30.0
_MOST_WAITING = 8
_LAST_EVENT_S = 0.2  # until the page has it
_AHEAD_S = 3.0
"""How far speech is handed over before it is due: more would only lie in memory."""


class Connection:
    """One visitor's session, from the offer to the end. Lives in one event loop; `close` ends everything.

    on_end: called once when it has ended, by whatever cause.
    """

    def __init__(self, client_id: str, session: LiveSession, on_end: Callable[[], None]) -> None:
        self.client_id = client_id
        self._session, self._on_end = session, on_end
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))  # none of the default ones, which are elsewhere
        self._pictures, self._sounds = PictureTrack(), SoundTrack()
        self._events: RTCDataChannel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._speeches: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._closing: asyncio.Task[None] | None = None
        self._microphone_on = False
        self._is_connected = False
        self._is_speaking: bool | None = None

    async def answer(self, offer: str, most_s: float) -> str:
        """Return the answer to a browser's offer (SDP both). most_s: how long it may last. Raises Refused."""
        self._peer.on("connectionstatechange", self._on_state)
        self._peer.on("datachannel", self._on_channel)
        self._peer.on("track", self._on_track)
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            self._peer.addTrack(self._pictures)
            self._peer.addTrack(self._sounds)
            await self._peer.setLocalDescription(await self._peer.createAnswer())
        except (
            ValueError,
            LookupError,
            AssertionError,
            InvalidAccessError,
            InvalidStateError,
            OperationError,
        ) as error:
            raise Refused("the offer cannot be used", status=422, code="offer", fix="use another browser") from error
        self._start(self._end_unless_connected())
        self._start(self._end_after(most_s, "the time for a visit is over"))
        return self._peer.localDescription.sdp

    def say(self, speech: Speech) -> None:
        """Let the face say it, after what is being said. Raises Refused."""
        if self._microphone_on:
            raise Refused("the microphone is on", status=409, code="microphone", fix="turn it off first")
        if len(self._speeches) >= _MOST_WAITING:
            raise Refused("too much is waiting to be said", status=429, code="too_much", fix="wait, or interrupt")
        task = self._start(self._hand_over(speech))
        self._speeches.add(task)
        task.add_done_callback(self._speeches.discard)

    def set_microphone(self, is_on: bool) -> None:
        """Let the face say what comes from the visitor's microphone, from now on; or end that."""
        if is_on == self._microphone_on:
            return
        if is_on:
            self.interrupt()
        else:
            self._session.end_segment()
        self._microphone_on = is_on

    def interrupt(self) -> None:
        """Throw away all that has not been said; the microphone is off then."""
        self._microphone_on = False
        for task in self._speeches:
            task.cancel()
        self._session.interrupt()
        self._sounds.clear()

    async def close(self) -> None:
        """End the session and the connection, and wait for that. May be called twice."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            self._pictures.stop()
            self._sounds.stop()
            await self._peer.close()
            await asyncio.to_thread(self._session.close)
        finally:
            self._on_end()

    def _end(self, error: LipstreamError | str) -> None:
        """Say why it ends to the page, and end."""
        if self._closing is None:
            message, fix = (error, None) if isinstance(error, str) else (error.message, error.fix)
            logger.info("a live session ends: %s", message)
            self._send({"ended": {"message": message, "fix": fix}})
            self._closing = asyncio.ensure_future(self._close(_LAST_EVENT_S))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _send(self, event: dict[str, Any]) -> None:
        if self._events is not None and self._events.readyState == "open" and self._peer.connectionState == "connected":
            self._events.send(json.dumps(event))

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._events, self._is_speaking = channel, None

    def _on_state(self) -> None:
        state = self._peer.connectionState
        if state == "connected" and not self._is_connected:
            self._is_connected = True
            self._start(self._give_out())
        elif state in ("failed", "closed"):
            self._end(f"the connection is {state}")

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._start(self._take_in(track))

    async def _give_out(self) -> None:
        """Send the session's frames as they are due."""
        try:
            async for frame in self._session:
                self._pictures.put(frame.picture, self._sounds.time_s)
                self._sounds.put(frame.samples, frame.sample_rate_hz)
                if frame.is_speech != self._is_speaking:
                    self._is_speaking = frame.is_speech
                    self._send({"speaking": frame.is_speech})
        except LipstreamError as error:
            self._end(error)
        except Exception:
            logger.exception("a live session has failed")
            self._end("internal error, see the server's log")
        else:
            self._end("the session is over")

    async def _take_in(self, track: MediaStreamTrack) -> None:
        """Hand the microphone's sound over while that is on."""
        try:
            while True:
                frame: Any = await track.recv()
                if self._microphone_on:
                    samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
                    self._session.push_audio(samples, frame.sample_rate)
        except MediaStreamError:
            return
        except LipstreamError as error:
            self._end(error)

    async def _hand_over(self, speech: Speech) -> None:
        async with self._turn:
            clock = asyncio.get_running_loop()
            begun_s, given_s = clock.time(), 0.0
            try:
                for block in speech.blocks():
                    self._session.push_audio(block, speech.sample_rate_hz)
                    given_s += len(block) / speech.sample_rate_hz
                    await asyncio.sleep(max(0.0, given_s - _AHEAD_S - (clock.time() - begun_s)))
                self._session.end_segment()
            except LipstreamError as error:
                self._end(error)

    async def _end_after(self, seconds: float, reason: str) -> None:
        await asyncio.sleep(seconds)
        self._end(reason)

    async def _end_unless_connected(self) -> None:
        await asyncio.sleep(_CONNECT_S)
        if not self._is_connected:
            self._end("no connection came about")
