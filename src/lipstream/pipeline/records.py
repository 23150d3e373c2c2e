"""What the stages hand to one another, and what a run is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.diffusion.conditioning import Conditioning
from lipstream.diffusion.sampling import Denoiser
from lipstream.engines.model import EngineModel
from lipstream.engines.networks import EngineAudioEncoder
from lipstream.face.people import Look
from lipstream.face.registry import Detector
from lipstream.media.reader import Frame
from lipstream.models.load import Model
from lipstream.models.whisper import AudioEncoder
from lipstream.runtime.device import FaceGeometry
from lipstream.runtime.device_stream import DeviceStream
from lipstream.runtime.precision import PrecisionFallback
from lipstream.settings import FRAME_RATE_HZ, SyncSettings

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class KnownFaces:
    """What `lipstream.pipeline.track.Tracked` says of each frame of an output.

    affine_matrices: (n, 2, 3) float32, NaN without a face. begins: (n,) bool. weights: (n,) float64.
    """

    affine_matrices: Matrix
    begins: NDArray[np.bool_]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def has_face(self) -> NDArray[np.bool_]:
        """Whether each frame has a face to generate: (n,) bool."""
        return np.logical_not(np.isnan(self.affine_matrices).any(axis=(1, 2)))


class PreparedFaces(Protocol):
    """What was made of the faces of a video's frames before any speech was there, by the frame's place in it."""

    def crop(self, source_index: int) -> Tensor:
        """Return the crop, see Aligned."""

    def latents(self, source_index: int) -> Tensor:
        """Return the latents, see Aligned."""


@dataclass(frozen=True)
class Clip:
    """The frames and the speech of one run, wherever they come from.

    name: what errors call it. picture_bytes: of a frame in memory. frames: `frame_rate` a second, looped as the
    settings say; the run changes their pictures.
    samples: the speech, mono, 16 kHz, in [-1, 1], in blocks. log_mel_max: of all of it, see
    `lipstream.audio_features.mel.log_mel_maximum`. n_frames: of the output, fewer with loop="trim". first_face: index
    of the first frame that need be searched for a face. pixel_aspect: width of a pixel over its
    height. model_departs: see ModelConfig.departs. person: what the face to follow looks like, where known.
    kept: the weight of the generated face in each frame, where pauses keep the frames as filmed. known: the faces of
    the whole output's frames, where they are known, so that none is searched. first_frame: index in the output of the
    first frame, whose audio features are the first that are needed; `samples` are those of the whole recording.
    prepared: crops and latents of the known faces, where there are any.
    """

    name: str | Path
    picture_bytes: int
    frames: Iterable[Frame]
    samples: Iterable[NDArray[np.float32]]
    log_mel_max: float
    n_frames: int
    settings: SyncSettings
    first_face: int = 0
    pixel_aspect: float = 1.0
    model_departs: bool = False
    person: Look | None = None
    kept: NDArray[np.float32] | None = None
    frame_rate: Fraction = Fraction(FRAME_RATE_HZ)
    known: KnownFaces | None = None
    first_frame: int = 0
    prepared: PreparedFaces | None = None


@dataclass(frozen=True)
class Aligned:
    """A frame, its affine_matrix (2, 3) to the crop and the crop (3, res, res) uint8; None without a face.

    begins, weight: see `lipstream.pipeline.track.Tracked`. latents: (2 C, h, w), of the masked and the whole crop,
    where they are known.
    """

    frame: Frame
    affine_matrix: Matrix | None
    crop: Tensor | None
    begins: bool = False
    weight: float = 1.0
    latents: Tensor | None = None


@dataclass(frozen=True)
class Window:
    """Frames generated together: `faces` of them have a face, each conditioned on its own audio features."""

    frames: tuple[Aligned, ...]
    audio: tuple[Tensor, ...]

    @property
    def faces(self) -> int:
        """Number of frames with a face."""
        return sum(aligned.crop is not None for aligned in self.frames)


@dataclass(frozen=True)
class Encoded:
    """Windows of one U-Net call, their crops (faces of all windows, 3, res, res) in [-1, 1] and their conditioning.

    Both on the device, and None where the windows hold no face.
    """

    windows: list[Window]
    pixels: Tensor | None = None
    conditioning: Conditioning | None = None

    def part(self, windows: slice) -> Encoded:
        """Return some of the windows, all of which have the same number of faces."""
        if self.pixels is None or self.conditioning is None:
            return Encoded(self.windows[windows])
        size = self.conditioning.num_frames
        faces = slice(windows.start * size, windows.stop * size)
        seen = self.conditioning
        part = replace(seen, channels=seen.channels[faces], audio=seen.audio[faces])
        return Encoded(self.windows[windows], self.pixels[faces], part)


@dataclass(frozen=True)
class Repainted:
    """A frame and its new crop: (3, res, res) in [-1, 1], (4, res, res) of `keep_texture`, None without a face.

    The crop lies on the device where it is pasted back, see FaceGeometry. weight: of the generated face. crop, latents:
    what it was generated from, see Aligned; the latents are on the networks' device.
    """

    frame: Frame
    affine_matrix: Matrix | None
    face: Tensor | None
    weight: float = 1.0
    crop: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class Counts:
    """How many frames were written with a generated face, and how many passed through untouched.

    spans_without: first and last frame of each run of the latter.
    """

    frames_with_face: int = 0
    frames_without: int = 0
    spans_without: list[tuple[int, int]] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Number of all frames."""
        return self.frames_with_face + self.frames_without

    def add(self, has_face: bool) -> None:
        """Count a frame."""
        if not has_face:
            follows = bool(self.spans_without) and self.spans_without[-1][1] == self.frames - 1
            begin = self.spans_without.pop()[0] if follows else self.frames
            self.spans_without.append((begin, self.frames))
        self.frames_with_face += has_face
        self.frames_without += not has_face


@dataclass(frozen=True)
class DeviceStreams:
    """One stream per stage, made once for all runs: memory that CUDA's allocator keeps is reused in its stream only."""

    align: DeviceStream
    features: DeviceStream
    encode: DeviceStream
    denoise: DeviceStream
    composite: DeviceStream

    @classmethod
    def to(cls, device: torch.device, geometry: FaceGeometry) -> DeviceStreams:
        """Return streams to the networks' device, and to where faces are cropped and pasted back."""
        of_faces = {name: DeviceStream(geometry.device) for name in ("align", "composite")}
        return cls(**of_faces, **{name: DeviceStream(device) for name in ("features", "encode", "denoise")})


@dataclass(frozen=True)
class Networks:
    """The networks, each with its higher precisions for results that are not finite."""

    unet: PrecisionFallback[Denoiser]
    vae: PrecisionFallback[Any]
    audio_encoder: PrecisionFallback[AudioEncoder | EngineAudioEncoder]


@dataclass(frozen=True)
class Components:
    """What a run is made of. threads: of detection. geometry: of align and composite. batch: windows per U-Net call.

    side_by_side: calls computed at the same time, each on a core of its own; None: one call at a time on all cores.
    frame_memory_bytes: of frames in flight.
    """

    model: Model | EngineModel
    networks: Networks
    detector: Detector
    device: torch.device
    threads: int
    geometry: FaceGeometry
    streams: DeviceStreams
    batch: int
    side_by_side: int | None
    frame_memory_bytes: int
