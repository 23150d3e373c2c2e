"""Measures that need somebody else's network: likeness of a face embedding, LPIPS, FID, FVD, where the files are here.

None is downloaded. The face embedding is InsightFace's, from its own folder; LPIPS and FID take the TorchScript files
of StyleGAN's metrics, FVD that of StyleGAN-V's, from a folder that the user names. TorchScript holds a program: take it
from its authors alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.errors import ModelError
from lipstream.evaluate.region import CROP_PX
from lipstream.face.align import crop_face
from lipstream.face.quiet import IMPORT_ERRORS, import_problem
from lipstream.imaging import affine_grid, bilinear_sample, invert_affine

Image = NDArray[np.uint8]
Matrix = NDArray[np.float32]

LPIPS_FILE = "vgg16.pt"
FID_FILE = "inception-2015-12-05.pt"
FVD_FILE = "i3d_torchscript.pt"
FVD_FRAMES = 16  # of a window
EMBEDDING_FILES = (("buffalo_l", "w600k_r50.onnx"), ("buffalo_s", "w600k_mbf.onnx"))

# ArcFace's crop of 112 px from the face rectangle of a 256 px crop: the similarity that best takes the mean eyes, nose
# and mouth corners of ten speakers there to its template (Deng et al. 2019). Fixed, so that a mouth that opens does not
# move the crop.
_EMBEDDING_PX, _EMBEDDING_SCALE, _EMBEDDING_SHIFT = 112, 0.425, (11.5, 16.8)


@dataclass(frozen=True)
class FaceNetworks:
    """The networks that are at hand. embed: a face (3, 112, 112), RGB, -1 to 1, to its embedding. lpips: two crops.

    features: crops (n, 3, 256, 256) uint8 to those that FID compares, (n, features). window_features: windows of crops
    (n, 3, FVD_FRAMES, 256, 256) uint8 to those that FVD compares.
    """

    embed: Callable[[Tensor], NDArray[np.float32]] | None = None
    lpips: Callable[[Tensor, Tensor], float] | None = None
    features: Callable[[Tensor], NDArray[np.float64]] | None = None
    window_features: Callable[[Tensor], NDArray[np.float64]] | None = None


class Likeness:
    """Accumulates, for one clip, what the networks that are here say of its face and the one that it is compared with.

    fid, fvd: take what is compared over all clips.
    """

    def __init__(self, networks: FaceNetworks, fid: FrechetDistance, fvd: FrechetDistance) -> None:
        self._networks, self._fid, self._fvd = networks, fid, fvd
        self._values: dict[str, list[float]] = {}
        self._window: list[list[Tensor]] = []

    def add(self, like: Image, image: Image, affine_matrix: Matrix) -> None:
        """Add a frame (h, w, 3) in which both have a face."""
        networks = self._networks
        if networks.embed is not None:
            one, other = (networks.embed(_embedding_crop(picture, affine_matrix)) for picture in (like, image))
            cosine = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
            self._values.setdefault("identity", []).append(cosine)
        if networks.lpips is None and networks.features is None and networks.window_features is None:
            return
        crops = [crop_face(picture, affine_matrix, CROP_PX) for picture in (like, image)]
        if networks.lpips is not None:
            self._values.setdefault("lpips", []).append(networks.lpips(*crops))
        if networks.features is not None:
            self._fid.add(*(networks.features(crop[None]) for crop in crops))
        if networks.window_features is not None:
            self._window.append(crops)
            if len(self._window) == FVD_FRAMES:
                windows = (torch.stack(frames, 1)[None] for frames in zip(*self._window, strict=True))
                self._fvd.add(*(networks.window_features(window) for window in windows))
                self._window.clear()

    def interrupt(self) -> None:
        """Begin a new window: a frame has no face."""
        self._window.clear()

    def means(self) -> dict[str, float]:
        """Return the mean `identity` and `lpips`, as far as networks are here."""
        return {name: float(np.mean(values)) for name, values in self._values.items()}


def find_networks(folder: Path | None, device: torch.device | str = "cpu") -> tuple[FaceNetworks, dict[str, str]]:
    """Load what is on this machine, and say what is not and why, by the measure's name.

    folder: holds LPIPS_FILE, FID_FILE, FVD_FILE or some of them. Raises ModelError for a file that cannot be loaded.
    """
    absent: dict[str, str] = {}
    embed = _load_embedding(absent)
    files = {"lpips": LPIPS_FILE, "fid": FID_FILE, "fvd": FVD_FILE}
    lpips, inception, i3d = (_script(folder, name, measure, device, absent) for measure, name in files.items())
    return FaceNetworks(
        embed,
        None if lpips is None else partial(_lpips, lpips, device),
        None if inception is None else partial(_features, inception, device),
        None if i3d is None else partial(_window_features, i3d, device),
    ), absent


@torch.inference_mode()
def _lpips(network: Any, device: torch.device | str, one: Tensor, other: Tensor) -> float:
    """Return the distance of two crops (3, h, w) uint8 (Zhang et al. 2018)."""
    found = network(torch.stack([one, other]).float().to(device), resize_images=False, return_lpips=True)
    return float((found[0] - found[1]).square().sum())


@torch.inference_mode()
def _features(network: Any, device: torch.device | str, crops: Tensor) -> NDArray[np.float64]:
    """Return Inception's features (n, features) of crops (n, 3, h, w) uint8."""
    return np.asarray(network(crops.to(device), return_features=True).double().cpu().numpy())


@torch.inference_mode()
def _window_features(network: Any, device: torch.device | str, windows: Tensor) -> NDArray[np.float64]:
    """Return I3D's features (n, features) of windows (n, 3, frames, h, w) uint8."""
    found = network(windows.float().to(device), rescale=True, resize=True, return_features=True)
    return np.asarray(found.double().cpu().numpy())


def _script(
    folder: Path | None, name: str, measure: str, device: torch.device | str, absent: dict[str, str]
) -> Any | None:
    path = None if folder is None else folder / name
    if path is None or not path.is_file():
        absent[measure] = f"no {name} at hand: name the folder that it is in with --networks"
        return None
    try:
        return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise ModelError(f"not a TorchScript network ({reason})", file=path, fix="download it again") from error


def _load_embedding(absent: dict[str, str]) -> Callable[[Tensor], NDArray[np.float32]] | None:
    from lipstream.face.insightface import models_folder

    places = (models_folder(model) / name for model, name in EMBEDDING_FILES)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        absent["identity"] = "no face embedding at hand: `lipstream models download buffalo_s` fetches one"
        return None
    try:
        import onnxruntime
    except IMPORT_ERRORS as error:
        absent["identity"] = import_problem("lipstream[insightface]", error).message
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def embed(crop: Tensor) -> NDArray[np.float32]:
        return np.asarray(session.run(None, {name: crop[None].numpy()})[0][0], np.float32)

    return embed


def _embedding_crop(image: Image, affine_matrix: Matrix) -> Tensor:
    """Cut the face out as ArcFace takes it: (3, 112, 112) float32, -1 to 1."""
    whole = np.vstack([affine_matrix, [0, 0, 1]])
    scale = np.array([[_EMBEDDING_SCALE, 0, _EMBEDDING_SHIFT[0]], [0, _EMBEDDING_SCALE, _EMBEDDING_SHIFT[1]]])
    to_frame = invert_affine(scale @ whole)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    size = (_EMBEDDING_PX, _EMBEDDING_PX)
    grid = affine_grid(to_frame[None], size, (image.shape[1], image.shape[0]), pixels.device)
    return bilinear_sample(pixels, grid)[0] / 127.5 - 1


class FrechetDistance:
    """Accumulates the Fréchet distance between the features of two sets of pictures (Heusel et al. 2017: FID)."""

    def __init__(self) -> None:
        self._moments = _Moments(), _Moments()

    def add(self, reference: NDArray[np.float64], picture: NDArray[np.float64]) -> None:
        """Add features (n, features) of both."""
        for moments, features in zip(self._moments, (reference, picture), strict=True):
            moments.add(features)

    @property
    def count(self) -> int:
        """Pictures of each so far; with fewer than there are features the distance is biased upwards."""
        return self._moments[0].count

    def value(self) -> float | None:
        """Return the distance, None with fewer than two pictures."""
        if self.count < 2:
            return None
        (one, one_cov), (other, other_cov) = (moments.value() for moments in self._moments)
        eigenvalues, vectors = np.linalg.eigh(one_cov)
        root = (vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T
        cross = np.sqrt(np.linalg.eigvalsh(root @ other_cov @ root).clip(0)).sum()
        return float(np.square(one - other).sum() + np.trace(one_cov) + np.trace(other_cov) - 2 * cross)


class _Moments:
    """Mean and covariance of features, read once."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Any = 0.0
        self._products: Any = 0.0

    def add(self, features: NDArray[np.float64]) -> None:
        self.count += len(features)
        self._sum = self._sum + features.sum(axis=0)
        self._products = self._products + features.T @ features

    def value(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self._sum / self.count
        return mean, (self._products - self.count * np.outer(mean, mean)) / (self.count - 1)
