"""Benchmark cases: a whole run, or one stage on prepared inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.audio_features.features import feature_rows, frame_windows
from lipstream.diffusion import conditioning
from lipstream.diffusion.batching import windows_per_call
from lipstream.diffusion.mask import face_mask
from lipstream.diffusion.sampling import Denoiser, UNetDenoiser, initial_noise, sample
from lipstream.engines.model import EngineModel
from lipstream.errors import NoFaceError
from lipstream.evaluate.quality import Images
from lipstream.face.registry import Detector
from lipstream.face.texture import keep_texture
from lipstream.face.tracking import FaceTrack
from lipstream.lipsync import LipSync
from lipstream.media.audio import read_mono
from lipstream.media.loop import read_looped
from lipstream.media.reader import Frame
from lipstream.models.load import Model
from lipstream.models.unet import UNet
from lipstream.models.upsample_conv import pays_on
from lipstream.pipeline.build import make_denoiser
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.line import align, by_groups, composite
from lipstream.pipeline.records import Aligned, Repainted
from lipstream.pipeline.threads import ThreadGroup
from lipstream.pipeline.track import Tracked
from lipstream.profiling.clips import Clip, Inputs, untouched
from lipstream.runtime.device import face_geometry, face_threads, torch_device
from lipstream.runtime.device_stream import DeviceStream
from lipstream.settings import RuntimeSettings, SyncSettings
from lipstream_lab.bench import flops

StageName = Literal["align", "composite", "detect", "features", "unet", "vae", "all"]


@dataclass(frozen=True)
class Setting:
    """One row of a benchmark. text: the options as the user gave them."""

    name: str
    text: str
    model: str
    sync: SyncSettings
    runtime: RuntimeSettings


@dataclass(frozen=True)
class Parts:
    """The loaded model and detector of a setting."""

    model: Model | EngineModel
    detector: Detector


@dataclass(frozen=True)
class Case:
    """Something to time.

    run: does the work, on all `frames` frames. flop: floating-point operations of its networks, None if it has none.
    pictures: does the work again and returns the images, None if it makes no images. untouched: the source frames of
    these images.
    """

    run: Callable[[], Any]
    frames: int
    flop: int | None = None
    pictures: Callable[[], Images] | None = None
    untouched: Images | None = None


def make_case(stage: StageName, setting: Setting, parts: Parts, inputs: Inputs) -> Case:
    """Prepare the inputs of the stage, so that `run` does its work and nothing else.

    Raises InputError and NoFaceError.
    """
    if stage == "all":
        return _whole_run(setting, parts, inputs)
    if stage == "features":
        return _features(setting, parts, inputs)
    if stage == "unet":
        return _unet(setting, parts, inputs)
    frames = _frames(inputs, setting)
    if stage == "detect":
        return _detect(setting, parts, frames)
    faces = _align_all(setting, parts, frames)
    if stage == "align":
        return _align(setting, parts, faces)
    if stage == "composite":
        return _composite(setting, parts, faces)
    return _vae(setting, parts, faces)


def _whole_run(setting: Setting, parts: Parts, inputs: Inputs) -> Case:
    sync = LipSync(parts.model, parts.detector, setting.runtime)
    folder = Path(tempfile.mkdtemp(dir=inputs.folder))

    def pictures() -> Images:
        lossless = replace(setting.sync, crf=0)
        sync(inputs.video, inputs.speech, folder / "lossless.mp4", lossless, overwrite=True)
        return Clip(folder / "lossless.mp4", inputs.n_frames)

    return Case(
        run=lambda: sync(inputs.video, inputs.speech, folder / "out.mp4", setting.sync, overwrite=True),
        frames=inputs.n_frames,
        flop=_flop(setting, inputs.n_frames).total,
        pictures=pictures,
        untouched=untouched(inputs, setting.sync.loop),
    )


def _features(setting: Setting, parts: Parts, inputs: Inputs) -> Case:
    return Case(
        run=lambda: _audio_features(parts, inputs),
        frames=inputs.n_frames,
        flop=_flop(setting, inputs.n_frames).features,
    )


def _detect(setting: Setting, parts: Parts, frames: list[Frame]) -> Case:
    images = [frame.image for frame in frames]
    return Case(run=lambda: _mapped(parts.detector.detect, images, setting, "detect"), frames=len(frames))


def _align(setting: Setting, parts: Parts, faces: list[Aligned]) -> Case:
    crop_all = _cropper(setting, parts)
    tracked = [Tracked(face.frame, face.affine_matrix) for face in faces]

    def run() -> list[Aligned]:
        return crop_all(tracked)

    return Case(run, len(faces), pictures=lambda: [_image(crop) for crop in _crops(run())])


def _composite(setting: Setting, parts: Parts, faces: list[Aligned]) -> Case:
    """Paste darkened crops back, so that every generated pixel changes."""
    config, geometry = parts.model.config, face_geometry(setting.runtime)
    crops = torch.stack(_crops(faces))
    generated = conditioning.to_pixels(crops // 2)
    if (setting.sync.texture or config.texture) == "source":
        mask = face_mask(config.mask_polygon_xy, config.mask_size, _resolution(setting, parts)).to(crops.device)
        generated = keep_texture(generated, conditioning.to_pixels(crops), mask)

    def repainted() -> list[Repainted]:
        """Return the items on copies of the frames, which are changed in place."""
        frames = [replace(face.frame, picture=face.frame.picture.copy()) for face in faces]
        return [Repainted(frames[i], face.affine_matrix, generated[i]) for i, face in enumerate(faces)]

    into_frames = partial(composite, DeviceStream(geometry.device))

    def paste(items: list[Repainted]) -> Images:
        with ThreadGroup() as threads:
            return [
                frame.image for frame, _ in by_groups(into_frames, items, geometry, StageClock("composite"), threads)
            ]

    timed = repainted()
    return Case(
        run=lambda: paste(timed),
        frames=len(faces),
        pictures=lambda: paste(repainted()),
        untouched=[face.frame.image for face in faces],
    )


def _vae(setting: Setting, parts: Parts, faces: list[Aligned]) -> Case:
    """Encode masked and whole crops and decode as many, as a run does for each window."""
    batches = _batches(setting, parts, faces, None)
    channels = parts.model.config.unet.out_channels

    @torch.inference_mode()
    def run() -> list[Tensor]:
        decoded = []
        for pixels, mask, audio, num_frames in batches:
            conditions = conditioning.condition(parts.model.vae, pixels, mask, audio, num_frames)
            decoded.append(conditioning.decode(parts.model.vae, conditions.channels[:, -channels:]))
        return decoded

    flop = _flop(setting, len(faces)).vae
    return Case(run, len(faces), flop, pictures=lambda: _images(run()))


@dataclass(frozen=True)
class Sampling:
    """The sampling loop over a clip with its inputs prepared; runs with any U-Net of the model's shape.

    crops: (faces, 3, res, res) uint8, on the CPU. batches: conditioning of each U-Net call, in order.
    mask: (1, res, res), 1 where a crop is kept. noise: (1, C, h, w).
    """

    setting: Setting
    model: Model | EngineModel
    crops: Tensor
    batches: list[conditioning.Conditioning]
    mask: Tensor
    noise: Tensor

    @torch.inference_mode()
    def run(self, unet: UNet | Denoiser) -> list[Tensor]:
        """Return the latents of each call: (faces, C, h, w)."""
        config, denoiser = self.model.config, UNetDenoiser(unet) if isinstance(unet, UNet) else unet
        sampling = self.setting.sync.sampling(config.num_inference_steps, config.guidance_scale)
        return [sample(denoiser, config.scheduler, self.noise, conditions, sampling) for conditions in self.batches]

    @torch.inference_mode()
    def decoded(self, unet: UNet | Denoiser) -> list[Tensor]:
        """Return the decoded pixels of each call: (faces, 3, res, res), about [-1, 1]."""
        return [conditioning.decode(self.model.vae, latents) for latents in self.run(unet)]

    def pictures(self, unet: UNet | Denoiser) -> Images:
        """Return the generated faces as they are pasted into the frames."""
        repainted = torch.cat(self.decoded(unet))
        return _images([conditioning.keep_surroundings(repainted, self._pixels(), self.mask)])

    def untouched(self) -> Images:
        """Return the source crops."""
        return [_image(crop) for crop in self.crops]

    def _pixels(self) -> Tensor:
        return conditioning.to_pixels(self.crops.to(self.mask.device))


def make_sampling(setting: Setting, parts: Parts, inputs: Inputs) -> Sampling:
    """Detect and crop the faces, compute audio features and encodings. Raises InputError, NoFaceError."""
    faces, model = _align_all(setting, parts, _frames(inputs, setting)), parts.model
    audio_features, size = _audio_features(parts, inputs), model.latent_size(_resolution(setting, parts))
    batches = _batches(setting, parts, faces, audio_features)
    noise = initial_noise(model.config.unet.out_channels, size, size, setting.sync.seed)
    with torch.inference_mode():
        return Sampling(
            setting=setting,
            model=model,
            crops=torch.stack(_crops(faces)).cpu(),
            batches=[conditioning.condition(model.vae, *batch) for batch in batches],
            mask=batches[0][1],
            noise=noise.to(torch_device(setting.runtime)),
        )


def _unet(setting: Setting, parts: Parts, inputs: Inputs) -> Case:
    """Time the sampling loop alone, without encoding and decoding."""
    sampling, batch = make_sampling(setting, parts, inputs), setting.runtime.batch
    unet = make_denoiser(parts.model, setting.runtime, 1 if batch == "auto" else batch)
    frames = len(sampling.crops)
    flop = _flop(setting, frames).unet
    return Case(lambda: sampling.run(unet), frames, flop, lambda: _images(sampling.decoded(unet)))


def _flop(setting: Setting, n_frames: int) -> flops.Flop:
    runtime = setting.runtime
    merged = pays_on(torch_device(runtime)) and runtime.quantize == "none"
    return flops.count(setting.model, setting.sync, n_frames, runtime.pruned, merged=merged, vae=runtime.vae)


def _resolution(setting: Setting, parts: Parts) -> int:
    return setting.sync.resolution or parts.model.config.resolution


def _frames(inputs: Inputs, setting: Setting) -> list[Frame]:
    return list(read_looped(inputs.video, inputs.n_frames, setting.sync.loop))


def _align_all(setting: Setting, parts: Parts, frames: list[Frame]) -> list[Aligned]:
    """Detect, track and crop; frames without a face are left out. Raises NoFaceError if none has one."""
    track, tracked = FaceTrack(_resolution(setting, parts)), []
    for index, found in enumerate(_mapped(parts.detector.detect, [frame.image for frame in frames], setting, "detect")):
        affine_matrix = track.update(index, False, None if found is None else found.landmarks)
        if affine_matrix is not None:
            tracked.append(Tracked(frames[index], affine_matrix))
    if not tracked:
        raise NoFaceError(f"no usable face in the {len(frames)} frames of the benchmark", fix="give another video")
    return _cropper(setting, parts)(tracked)


def _cropper(setting: Setting, parts: Parts) -> Callable[[Iterable[Tracked]], list[Aligned]]:
    """Return a function that crops the faces of frames, as the pipeline does."""
    geometry = face_geometry(setting.runtime)
    crop = partial(align, _resolution(setting, parts), DeviceStream(geometry.device))

    def crop_all(tracked: Iterable[Tracked]) -> list[Aligned]:
        with ThreadGroup() as threads:
            return list(by_groups(crop, tracked, geometry, StageClock("align"), threads))

    return crop_all


def _crops(faces: Iterable[Aligned]) -> list[Tensor]:
    return [face.crop for face in faces if face.crop is not None]


def _audio_features(parts: Parts, inputs: Inputs) -> list[Tensor]:
    rows = feature_rows(lambda: read_mono(inputs.speech), parts.model.audio_encoder)
    return list(frame_windows(rows, inputs.n_frames))


def _batches(
    setting: Setting, parts: Parts, faces: list[Aligned], audio_features: list[Tensor] | None
) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    """Return (pixels, mask, audio, frames per window) of each U-Net call, on the device; empty audio if None."""
    config, device = parts.model.config, torch_device(setting.runtime)
    mask = face_mask(config.mask_polygon_xy, config.mask_size, _resolution(setting, parts)).to(device)
    batches, first = [], 0
    windows = windows_per_call(setting.runtime.batch, parts.model, device)
    for size, num_frames in flops.calls(len(faces), config.num_frames, windows):
        crops = torch.stack(_crops(faces[first : first + size]))
        audio = torch.empty(size, 0, 0) if audio_features is None else torch.stack(audio_features[first : first + size])
        batches.append((conditioning.to_pixels(crops.to(device)), mask, audio.to(device), num_frames))
        first += size
    return batches


def _mapped(function: Callable[[Any], Any], items: Iterable[Any], setting: Setting, name: str) -> list[Any]:
    with ThreadGroup() as threads:
        return list(threads.ordered_map(function, items, face_threads(setting.runtime), StageClock(name)))


def _images(batches: Iterable[Tensor]) -> Images:
    """Convert pixels (n, 3, h, w) in [-1, 1] to uint8 images (h, w, 3)."""
    return [_image(((p + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)) for batch in batches for p in batch]


def _image(picture: Tensor) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = picture.permute(1, 2, 0).cpu().numpy()
    return image
