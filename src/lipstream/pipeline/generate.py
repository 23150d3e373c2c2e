"""The generative stages: encode, denoise and decode windows, in higher precision or smaller batches if need be."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lipstream.diffusion import conditioning
from lipstream.diffusion.mask import face_mask
from lipstream.diffusion.sampling import Denoiser, initial_noise, sample
from lipstream.engines.model import EngineModel
from lipstream.face.color import match_color
from lipstream.face.texture import keep_texture
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.records import Components, Encoded, Repainted, Window
from lipstream.pipeline.threads import ThreadGroup
from lipstream.pipeline.windows import n_frames
from lipstream.runtime.memory import free_caches, is_out_of_memory
from lipstream.settings import SyncSettings

R = TypeVar("R")


class FaceGenerator:
    """Generates the face of every frame of a run."""

    def __init__(self, components: Components, settings: SyncSettings, threads: ThreadGroup) -> None:
        config = components.model.config
        self._components, self._settings, self._threads = components, settings, threads
        self._sampling = settings.sampling(config.num_inference_steps, config.guidance_scale)
        if isinstance(components.model, EngineModel):
            components.model.check(self._sampling)
        self._texture = settings.texture or config.texture
        self._match_color = settings.match_color or config.match_color
        self._batch = BatchLimit(components.batch, components.device)
        resolution = settings.resolution or config.resolution
        size, stream = components.model.latent_size(resolution), components.streams.denoise
        with stream.running():
            self._mask = stream.upload(face_mask(config.mask_polygon_xy, config.mask_size, resolution))
            noise = initial_noise(config.unet.out_channels, size, size, settings.seed)
            self._noise = stream.upload(noise)

    def frames(self, batches: Iterable[list[Window]], clocks: Clocks) -> Iterator[Repainted]:
        """Yield every frame of the batches with its generated face, on the device where it is pasted back."""
        components = self._components
        if components.device.type == "cuda":  # the next windows are encoded meanwhile
            encoded = self._threads.ordered_map(self.encode, batches, 1, clocks.encode, n_frames)
            generated = self._threads.ordered_map(self.generate, encoded, 1, clocks.denoise, _n_frames)
        else:  # encoding and denoising would compete for a CPU's cores: whole windows are computed at the same time
            n = clocks.encode.threads = components.side_by_side or 1

            def encode_and_generate(batch: list[Window]) -> list[Repainted]:
                with clocks.encode.running(n_frames(batch)):
                    encoded = self.encode(batch)
                return self.generate(encoded)

            generated = self._threads.ordered_map(
                encode_and_generate,
                batches,
                n,
                clocks.denoise,
                n_frames,
                in_flight=n,
                on_one_core=components.side_by_side is not None,
            )
        return itertools.chain.from_iterable(generated)

    def encode(self, batch: list[Window]) -> list[Encoded]:
        """Encode a batch, in several parts where memory does not allow one."""
        if not batch[0].faces:
            return [Encoded(batch)]
        return self._batch.in_parts(len(batch), lambda part: self._encode(batch[part]))

    def generate(self, parts: list[Encoded]) -> list[Repainted]:
        """Generate the faces of a batch."""
        return [repainted for encoded in parts for repainted in self._generate_part(encoded)]

    def _generate_part(self, encoded: Encoded) -> list[Repainted]:
        found = self._batch.in_parts(len(encoded.windows), lambda part: self._denoise(encoded.part(part)))
        faces = iter([face for part in found for face in part])
        frames = itertools.chain.from_iterable(window.frames for window in encoded.windows)
        latents = iter(() if encoded.conditioning is None else encoded.conditioning.channels[:, 1:])
        return [
            Repainted(a.frame, a.affine_matrix, None, a.weight)
            if a.crop is None
            else Repainted(a.frame, a.affine_matrix, next(faces), a.weight, a.crop, next(latents))
            for a in frames
        ]

    @torch.inference_mode()
    def _encode(self, windows: list[Window]) -> Encoded:
        components, stream, check = self._components, self._components.streams.encode, self._threads.check
        known = [a.latents for window in windows for a in window.frames if a.latents is not None]
        for vae in components.networks.vae.attempts(*_span(windows)):
            with stream.running():
                crops = torch.stack([a.crop for window in windows for a in window.frames if a.crop is not None])
                audio = torch.stack([features for window in windows for features in window.audio])
                pixels = conditioning.to_pixels(stream.upload(crops))
                if known:
                    latents = stream.upload(torch.stack(known))
                    seen = conditioning.condition_encoded(latents, self._mask, audio, windows[0].faces)
                else:
                    seen = conditioning.condition(vae, pixels, self._mask, audio, windows[0].faces, check)
                is_finite = stream.download(torch.isfinite(seen.channels).all())
            if is_finite:
                break
        return Encoded(windows, pixels, seen)

    @torch.inference_mode()
    def _denoise(self, batch: Encoded) -> Sequence[Tensor]:
        """Return new crops (faces of all windows, 3 or 4, res, res), float32: see `Repainted`.

        Where they are not finite, the failing part is computed again in higher precision: sampling, or decoding alone.
        """
        if batch.pixels is None or batch.conditioning is None:
            return ()
        components, stream, span = self._components, self._components.streams.denoise, _span(batch.windows)
        unets, vaes = components.networks.unet.attempts(*span), components.networks.vae.attempts(*span)
        denoiser, vae, latents = next(unets), next(vaes), None
        while True:
            with stream.running():
                if latents is None:
                    latents = self._sample(denoiser, batch.conditioning)
                decoded = conditioning.decode(vae, latents, self._threads.check)
                if self._match_color == "source":
                    decoded = match_color(decoded, batch.pixels)
                faces = conditioning.keep_surroundings(decoded, batch.pixels, self._mask)
                if self._texture == "source":
                    faces = keep_texture(faces, batch.pixels, self._mask)
                pasted = faces if components.geometry.device == components.device else stream.download(faces)
                # Both at once: on Metal, nothing may use the device outside the stream.
                are_finite = stream.download(torch.stack([torch.isfinite(t).all() for t in (faces, latents)]))
            faces_are_finite, latents_are_finite = are_finite.tolist()
            if faces_are_finite:
                return pasted.unbind()
            if latents_are_finite:
                vae = next(vaes)
            else:
                denoiser, latents = next(unets), None

    def _sample(self, denoiser: Denoiser, seen: conditioning.Conditioning) -> Tensor:
        scheduler = self._components.model.config.scheduler
        return sample(denoiser, scheduler, self._noise, seen, self._sampling, self._threads.check)


class BatchLimit:
    """How many windows a call may take: halved, for the rest of the run, each time that memory runs out."""

    def __init__(self, windows: int, device: torch.device) -> None:
        self._windows, self._device = windows, device
        self._lock = threading.Lock()

    def in_parts(self, n: int, call: Callable[[slice], R]) -> list[R]:
        """Return what `call` gives for each part of `n` windows, in order; one part if memory suffices.

        A single window for which a GPU has no memory is tried once more with the caches freed.
        """
        results: list[R] = []
        begin, is_retry = 0, False
        while begin < n:
            size = min(n - begin, self._windows)
            try:
                results.append(call(slice(begin, begin + size)))
            except Exception as error:
                if not is_out_of_memory(error) or is_retry or (size == 1 and self._device.type == "cpu"):
                    raise
            else:
                begin, is_retry = begin + size, False
                continue
            # Outside of the handler, whose traceback holds the tensors of the call that failed.
            is_retry = size == 1
            with self._lock:
                self._windows = min(self._windows, max(1, size // 2))
            free_caches(self._device)
        return results


def _n_frames(parts: list[Encoded]) -> int:
    return sum(n_frames(encoded.windows) for encoded in parts)


def _span(windows: Sequence[Window]) -> tuple[int, int]:
    """Return the first and the last frame of consecutive windows."""
    return windows[0].frames[0].frame.index, windows[-1].frames[-1].frame.index
