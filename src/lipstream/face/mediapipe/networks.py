"""mediapipe's face networks, whose files come with lipstream, run by LiteRT on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.quiet import IMPORT_ERRORS, Problem, import_problem, native_logs_hidden

T = TypeVar("T")

SIDE = 192
"""Width and height of the pictures that the networks take, in pixels."""


@dataclass(frozen=True)
class NetworkFile:
    """A network's file, and the input values that stand for black and for white."""

    path: Path
    black: float
    white: float


_FOLDER = Path(str(resources.files("lipstream.bundled"))) / "face"
DETECTION = NetworkFile(_FOLDER / "face_detection_full_range_sparse.tflite", black=-1.0, white=1.0)
"""Gives boxes and six points (2304, 16) and their scores (2304, 1), before the sigmoid."""
MESH = NetworkFile(_FOLDER / "face_landmark.tflite", black=0.0, white=1.0)
"""Gives 468 points of three coordinates (1, 1, 1404) and a score (1, 1, 1), likewise."""
MESH_WITH_FEATURES = NetworkFile(_FOLDER / "attention_mesh.tflite", black=0.0, white=1.0)
"""Gives mesh and score as MESH does, and features (48, 48, 32)."""
LIPS = NetworkFile(_FOLDER / "attention_lips.tflite", black=0.0, white=255.0)
"""Takes features (32, 16, 16) around the lips as they are; gives 80 points (80, 2) in 64ths of the crop."""


class Runs(Protocol):
    """What finds a mesh in a picture: a Network, or several as one."""

    def run(self, picture: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return the outputs for an RGB picture (3, 192, 192) from 0 to 255, without the batch dimension."""


class Network:
    """One of the networks, for one thread at a time. Raises ModelError where LiteRT or the file cannot be used."""

    def __init__(self, file: NetworkFile) -> None:
        problem = litert_problem()
        if problem is not None:
            raise ModelError(f"face detector mediapipe cannot be used: {problem.message}", fix=problem.fix)
        from ai_edge_litert.interpreter import Interpreter

        self._path = file.path
        try:
            with native_logs_hidden():
                self._interpreter: Any = Interpreter(model_path=str(file.path), num_threads=1)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise self._failed(error) from error
        self._black, self._level = np.float32(file.black), np.float32((file.white - file.black) / 255)
        self._input = self._interpreter.tensor(self._interpreter.get_input_details()[0]["index"])
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def run(self, picture: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return the outputs for an RGB picture (3, 192, 192) from 0 to 255, without the batch dimension."""
        self._fill(picture)
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise self._failed(error) from error
        return [self._interpreter.get_tensor(index)[0] for index in self._outputs]

    def _fill(self, picture: NDArray[Any]) -> None:
        # In a function of its own: the interpreter refuses to run while its memory is referenced.
        for channel, plane in enumerate(picture):  # ten times as fast as all at once
            memory = self._input()[0, ..., channel]
            np.multiply(plane, self._level, out=memory)
            if self._black:
                np.add(memory, self._black, out=memory)

    def _failed(self, error: Exception) -> ModelError:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        fix = "pip install --force-reinstall lipstream ai-edge-litert"
        return ModelError(f"LiteRT cannot run this network ({reason})", file=self._path, fix=fix)


def litert_problem() -> Problem | None:
    """Return why LiteRT cannot be imported, or None."""
    try:
        importlib.import_module("ai_edge_litert.interpreter")
    except IMPORT_ERRORS as error:
        return import_problem("ai-edge-litert", error)
    return None


class Pool(Generic[T]):
    """Lends things that serve one thread at a time; there are as many as threads ever borrowed at once."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._idle: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._idle.put(make())

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[T]:
        """Return a context with one of them, made if all are lent."""
        try:
            lent = self._idle.get_nowait()
        except queue.Empty:
            lent = self._make()
        try:
            yield lent
        finally:
            self._idle.put(lent)

    def close(self) -> None:
        """Forget those that are not lent."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait()
