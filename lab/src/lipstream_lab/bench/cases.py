"""What is timed: a whole sync, or one stage of it alone on inputs made beforehand."""

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
from lipstream.diffusion.batching import windows_a_call
from lipstream.diffusion.mask import face_mask
from lipstream.diffusion.sampling import UNetDenoiser, initial_noise, sample
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
from lipstream.pipeline.clocks import StageClock
from lipstream.pipeline.line import align, by_groups, composite
from lipstream.pipeline.records import Aligned, Matrix, Repainted
from lipstream.pipeline.threads import ThreadGroup
from lipstream.runtime.device import face_geometry, face_threads, torch_device
from lipstream.runtime.device_stream import DeviceStream
from lipstream.settings import RuntimeSettings, SyncSettings
from lipstream_lab.bench import flops
from lipstream_lab.bench.clips import Clip, Inputs, untouched

StageName = Literal["align", "composite", "detect", "features", "unet", "vae", "all"]


@dataclass(frozen=True)
class Setting:
    """One row of a benchmark: what is run, under its name. text: the words that it was given as."""

    name: str
    text: str
    model: str
    sync: SyncSettings
    runtime: RuntimeSettings


@dataclass(frozen=True)
class Parts:
    """What a setting runs with, loaded."""

    model: Model
    detector: Detector


@dataclass(frozen=True)
class Subject:
    """Something to time.

    run: the work itself, on all `frames` frames. flop: what that has the networks do, None where there are none.
    pictures: does the work once more and gives what came of it, None where that is no picture. untouched: the same
    frames as they were.
    """

    run: Callable[[], Any]
    frames: int
    flop: int | None = None
    pictures: Callable[[], Images] | None = None
    untouched: Images | None = None


def make_subject(stage: StageName, setting: Setting, parts: Parts, inputs: Inputs) -> Subject:
    """Make ready what the stage needs, so that `run` does its work and nothing else.

    Raises InputError, NoFaceError.
    """
    if stage == "all":
        return _sync(setting, parts, inputs)
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


def _sync(setting: Setting, parts: Parts, inputs: Inputs) -> Subject:
    sync = LipSync(parts.model, parts.detector, setting.runtime)
    folder = Path(tempfile.mkdtemp(dir=inputs.folder))

    def pictures() -> Images:
        lossless = replace(setting.sync, crf=0)
        sync(inputs.video, inputs.speech, folder / "lossless.mp4", lossless, overwrite=True)
        return Clip(folder / "lossless.mp4", inputs.n_frames)

    return Subject(
        run=lambda: sync(inputs.video, inputs.speech, folder / "out.mp4", setting.sync, overwrite=True),
        frames=inputs.n_frames,
        flop=_flop(setting, inputs.n_frames).total,
        pictures=pictures,
        untouched=untouched(inputs, setting.sync.loop),
    )


def _features(setting: Setting, parts: Parts, inputs: Inputs) -> Subject:
    return Subject(
        run=lambda: _audio_features(parts, inputs),
        frames=inputs.n_frames,
        flop=_flop(setting, inputs.n_frames).features,
    )


def _detect(setting: Setting, parts: Parts, frames: list[Frame]) -> Subject:
    images = [frame.image for frame in frames]
    return Subject(run=lambda: _mapped(parts.detector.detect, images, setting, "detect"), frames=len(frames))


def _align(setting: Setting, parts: Parts, faces: list[Aligned]) -> Subject:
    cut_out = _cutting(setting, parts)
    tracked = [(face.frame, face.affine_matrix) for face in faces]

    def run() -> list[Aligned]:
        return cut_out(tracked)

    return Subject(run, len(faces), pictures=lambda: [_image(crop) for crop in _crops(run())])


def _composite(setting: Setting, parts: Parts, faces: list[Aligned]) -> Subject:
    """Pastes the crops back, darkened, so that every generated pixel changes."""
    config, geometry = parts.model.config, face_geometry(setting.runtime)
    crops = torch.stack(_crops(faces))
    generated = conditioning.to_pixels(crops // 2)
    if (setting.sync.texture or config.texture) == "source":
        mask = face_mask(config.mask_polygon_xy, config.mask_size, _resolution(setting, parts)).to(crops.device)
        generated = keep_texture(generated, conditioning.to_pixels(crops), mask)

    def repainted() -> list[Repainted]:
        """On frames of its own: they are changed in place."""
        frames = [replace(face.frame, image=face.frame.image.copy()) for face in faces]
        return [Repainted(frames[i], face.affine_matrix, generated[i]) for i, face in enumerate(faces)]

    into_frames = partial(composite, DeviceStream(geometry.device))

    def paste(items: list[Repainted]) -> Images:
        with ThreadGroup() as threads:
            return [image for image, _ in by_groups(into_frames, items, geometry, StageClock("composite"), threads)]

    timed = repainted()
    return Subject(
        run=lambda: paste(timed),
        frames=len(faces),
        pictures=lambda: paste(repainted()),
        untouched=[face.frame.image for face in faces],
    )


def _vae(setting: Setting, parts: Parts, faces: list[Aligned]) -> Subject:
    """Encodes masked and whole crops and decodes as many: what a run does once per window."""
    batches = _batches(setting, parts, faces, None)
    channels = parts.model.config.unet.out_channels

    @torch.inference_mode()
    def run() -> list[Tensor]:
        decoded = []
        for pixels, mask, audio, num_frames in batches:
            seen = conditioning.condition(parts.model.vae, pixels, mask, audio, num_frames)
            decoded.append(conditioning.decode(parts.model.vae, seen.channels[:, -channels:]))
        return decoded

    flop = _flop(setting, len(faces)).vae
    return Subject(run, len(faces), flop, pictures=lambda: _images(run()))


@dataclass(frozen=True)
class Sampling:
    """The sampling loop over a clip, with all that comes before it done; any U-Net of the model's shape may run it.

    crops: (faces, 3, res, res), uint8, on the CPU. batches: what conditions each U-Net call, in their order.
    mask: (1, res, res), 1 where a crop is kept. noise: (1, C, h, w).
    """

    setting: Setting
    model: Model
    crops: Tensor
    batches: list[conditioning.Conditioning]
    mask: Tensor
    noise: Tensor

    @torch.inference_mode()
    def run(self, unet: UNet) -> list[Tensor]:
        """Latents (faces of a call, C, h, w) of every call."""
        config, denoiser = self.model.config, UNetDenoiser(unet)
        sampling = self.setting.sync.sampling(config.num_inference_steps, config.guidance_scale)
        return [sample(denoiser, config.scheduler, self.noise, seen, sampling) for seen in self.batches]

    @torch.inference_mode()
    def decoded(self, unet: UNet) -> list[Tensor]:
        """Pixels (faces of a call, 3, res, res), about [-1, 1], of every call."""
        return [conditioning.decode(self.model.vae, latents) for latents in self.run(unet)]

    def pictures(self, unet: UNet) -> Images:
        """The crops with their region repainted, as they are pasted into the frames."""
        repainted = torch.cat(self.decoded(unet))
        return _images([conditioning.keep_surroundings(repainted, self._pixels(), self.mask)])

    def untouched(self) -> Images:
        """The crops as they are."""
        return [_image(crop) for crop in self.crops]

    def _pixels(self) -> Tensor:
        return conditioning.to_pixels(self.crops.to(self.mask.device))


def make_sampling(setting: Setting, parts: Parts, inputs: Inputs) -> Sampling:
    """Find and cut out the faces, compute the audio features and encode both. Raises InputError, NoFaceError."""
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


def _unet(setting: Setting, parts: Parts, inputs: Inputs) -> Subject:
    """The sampling loop alone; encoding comes before, decoding after."""
    sampling, unet = make_sampling(setting, parts, inputs), parts.model.unet
    frames = len(sampling.crops)
    flop = _flop(setting, frames).unet
    return Subject(lambda: sampling.run(unet), frames, flop, lambda: _images(sampling.decoded(unet)))


def _flop(setting: Setting, n_frames: int) -> flops.Flop:
    runtime = setting.runtime
    merged = pays_on(torch_device(runtime)) and runtime.quantize == "none"
    return flops.count(setting.model, setting.sync, n_frames, runtime.pruned, merged=merged)


def _resolution(setting: Setting, parts: Parts) -> int:
    return setting.sync.resolution or parts.model.config.resolution


def _frames(inputs: Inputs, setting: Setting) -> list[Frame]:
    return list(read_looped(inputs.video, inputs.n_frames, setting.sync.loop))


def _align_all(setting: Setting, parts: Parts, frames: list[Frame]) -> list[Aligned]:
    """Every frame with a face, found and cut out."""
    track, tracked = FaceTrack(_resolution(setting, parts)), []
    for index, found in enumerate(_mapped(parts.detector.detect, [frame.image for frame in frames], setting, "detect")):
        affine_matrix = track.update(index, False, None if found is None else found.landmarks)
        if affine_matrix is not None:
            tracked.append((frames[index], affine_matrix))
    if not tracked:
        raise NoFaceError(f"no usable face in the {len(frames)} frames of the benchmark; name another video")
    return _cutting(setting, parts)(tracked)


def _cutting(setting: Setting, parts: Parts) -> Callable[[Iterable[tuple[Frame, Matrix | None]]], list[Aligned]]:
    """What cuts the faces out of frames, as the line does."""
    geometry = face_geometry(setting.runtime)
    cut = partial(align, _resolution(setting, parts), DeviceStream(geometry.device))

    def cut_all(tracked: Iterable[tuple[Frame, Matrix | None]]) -> list[Aligned]:
        with ThreadGroup() as threads:
            return list(by_groups(cut, tracked, geometry, StageClock("align"), threads))

    return cut_all


def _crops(faces: Iterable[Aligned]) -> list[Tensor]:
    return [face.crop for face in faces if face.crop is not None]


def _audio_features(parts: Parts, inputs: Inputs) -> list[Tensor]:
    rows = feature_rows(lambda: read_mono(inputs.speech), parts.model.audio_encoder)
    return list(frame_windows(rows, inputs.n_frames))


def _batches(
    setting: Setting, parts: Parts, faces: list[Aligned], audio_features: list[Tensor] | None
) -> list[tuple[Tensor, Tensor, Tensor, int]]:
    """Pixels, mask, audio and frames a window of each U-Net call, on the device; no audio where nobody listens."""
    config, device = parts.model.config, torch_device(setting.runtime)
    mask = face_mask(config.mask_polygon_xy, config.mask_size, _resolution(setting, parts)).to(device)
    batches, first = [], 0
    windows = windows_a_call(setting.runtime.batch, parts.model, device)
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
    """Pixels (n, 3, h, w) in [-1, 1] as images."""
    return [_image(((p + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)) for batch in batches for p in batch]


def _image(picture: Tensor) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = picture.permute(1, 2, 0).cpu().numpy()
    return image
