"""mediapipe's two face networks, whose files come with lipstream, run by LiteRT on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipstream.errors import ModelError
from lipstream.face.quiet import import_mend, native_logs_hidden

SIDE = 192
"""Both networks look at squares of so many pixels."""


@dataclass(frozen=True)
class NetworkFile:
    """A network's file, and the numbers that it takes for black and for white."""

    path: Path
    black: float
    white: float


_FOLDER = Path(str(resources.files("lipstream.bundled"))) / "face"
DETECTION = NetworkFile(_FOLDER / "face_detection_full_range_sparse.tflite", black=-1.0, white=1.0)
"""Gives boxes and six points (2304, 16) and their scores (2304, 1), before the sigmoid."""
MESH = NetworkFile(_FOLDER / "face_landmark.tflite", black=0.0, white=1.0)
"""Gives 468 points of three coordinates (1, 1, 1404) and a score (1, 1, 1), likewise."""


class Network:
    """One of the networks, for one thread at a time. Raises ModelError where LiteRT is missing."""

    def __init__(self, file: NetworkFile) -> None:
        interpreter = _interpreter_class()
        with native_logs_hidden():
            self._interpreter: Any = interpreter(model_path=str(file.path), num_threads=1)
            self._interpreter.allocate_tensors()
        self._black, self._level = np.float32(file.black), np.float32((file.white - file.black) / 255)
        self._input = self._interpreter.tensor(self._interpreter.get_input_details()[0]["index"])
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def run(self, picture: NDArray[Any]) -> list[NDArray[np.float32]]:
        """What the network makes of an RGB picture (3, 192, 192) from 0 to 255, without the batch dimension."""
        self._fill(picture)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index)[0] for index in self._outputs]

    def _fill(self, picture: NDArray[Any]) -> None:
        # In a function of its own: the interpreter does not run while anyone holds on to its memory.
        for channel, plane in enumerate(picture):  # ten times as fast as all at once
            memory = self._input()[0, ..., channel]
            np.multiply(plane, self._level, out=memory)
            if self._black:
                np.add(memory, self._black, out=memory)


def _interpreter_class() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ModelError(f"face detector mediapipe: {import_mend('mediapipe', error)}") from error
    return Interpreter
