"""LipSync: load a model once, sync as many clips as you like."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipstream.diffusion.sampling import Denoiser
from lipstream.engines.export import OnGraph
from lipstream.engines.model import EngineModel
from lipstream.errors import SettingsError
from lipstream.face.chosen import FaceChoice
from lipstream.face.registry import Detector, make_detector
from lipstream.jobs import JobResult, SyncJob, run_job
from lipstream.live.avatar import Avatar
from lipstream.live.source import opened
from lipstream.live.worker import LiveWorker
from lipstream.media.audio import SpeechInfo
from lipstream.media.conversation import Conversation
from lipstream.media.origin import signing_for
from lipstream.media.reader import VideoInfo, probe
from lipstream.models.load import Model
from lipstream.pipeline.analyse import FaceTable, analyse, checked_table, rate_of
from lipstream.pipeline.build import build_components, load_networks, settings_used
from lipstream.pipeline.caller import Watch, stage_times
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.file_job import file_job, probe_inputs
from lipstream.pipeline.memory_clip import generated_crops, pasted_pictures
from lipstream.pipeline.run import run
from lipstream.results import GeneratedCrop, Progress, SyncResult
from lipstream.runtime.device import torch_device
from lipstream.runtime.memory import memory_errors
from lipstream.runtime.options import RuntimeFields, with_options
from lipstream.runtime.process import check_process
from lipstream.settings import FRAME_RATE_HZ, RuntimeSettings, SyncSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)


class LipSync(LiveWorker):
    """A loaded model and its face detector. Calls from several threads take turns.

    A context manager that closes it.
    """

    def __init__(
        self,
        model: Model | EngineModel,
        detector: Detector,
        runtime: RuntimeSettings,
        *,
        denoiser: Denoiser | None = None,
    ) -> None:
        """Take a model that is loaded, and a detector, which stays the caller's to close.

        runtime: its device has to be the model's. denoiser: computes in place of the model's U-Net, which is still what
        a result that is not finite is computed with again.
        """
        check_process()
        super().__init__(build_components(model, detector, runtime, denoiser), runtime)
        self._owns_detector = False

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny",
        runtime: RuntimeSettings | None = None,
        *,
        on_export: OnGraph | None = None,
        **options: Unpack[RuntimeFields],
    ) -> LipSync:
        """Load a named model or a model folder.

        runtime: what to run on. options: fields of RuntimeSettings (device, precision, quantize, detector, threads,
        batch, ...), in place of `runtime` or of some of its fields. on_export: called with each graph that has to be
        exported for an engine: its name, how many are done, how many there are. Raises SettingsError for an unknown
        field or a device that this machine does not have, ModelError for a model, a list of layers or a detector that
        cannot be loaded, OutOfMemoryError.
        """
        check_process()
        settings = with_options(runtime or RuntimeSettings(), dict(options))
        device = torch_device(settings)
        with memory_errors(device):
            detector = make_detector(settings.detector, device)
            sync = cls(load_networks(model, settings, device, on_export), detector, settings)
        sync._owns_detector = True
        return sync

    @property
    def model(self) -> Model | EngineModel:
        """The loaded model, for another LipSync with other settings."""
        return self._open().model

    @property
    def detector(self) -> Detector:
        """The face detector."""
        return self._open().detector

    @property
    def runtime(self) -> RuntimeSettings:
        """The settings that this was made with."""
        return self._runtime

    def __enter__(self) -> LipSync:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the networks, and the detector if `load` made it, after the call that is at work. May be called twice.

        Generators of `frames` and `crops` that this thread has begun and not exhausted are closed.
        """
        self._free(detector=self._owns_detector)

    def __call__(
        self,
        video: str | Path | VideoInfo | Avatar,
        audio: str | Path | SpeechInfo | Mapping[str, str | Path],
        output: str | Path,
        settings: SyncSettings | None = None,
        *,
        overwrite: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        face: FaceChoice | None = None,
        clocks: Clocks | None = None,
        faces: FaceTable | str | Path | None = None,
    ) -> SyncResult:
        """Write `video` to `output` with the mouth saying `audio`; the file is whole or absent.

        video: anything PyAV reads, or a prepared clip, of which only the mouths are computed. audio: a recording, or a
        video with a sound track; for several people, who (as in `settings.face`) and the recording of each, whose sum
        is the sound. Both may be what `probe_inputs` returned, so
        that they are not probed again. output: .mp4, .mov or .mkv. on_progress: called in this thread, once with all
        stages at zero, then every 0.5 s, and at the end; an exception that it raises ends the run. cancel: once set,
        ends the run within 2 s. face: chooses among the faces of a frame, the largest if None: a box (left, top, right,
        bottom) in px takes the one of which most lies in it; a callback is given a list of Face, the largest first, in
        any thread and order of frames, and returns one or None. clocks: to count on. faces: what `analyse` found in
        this video, or the file of it: no face is searched for. Raises InputError, NoFaceError, OutputError,
        SettingsError, ModelError, OutOfMemoryError, Cancelled.

        All threads of the run have ended when this returns or raises, but for one inside a library's call that takes
        longer than about 2 s, such as a step of a large model on a CPU: it ends after that, and the next call waits
        for it.
        """
        settings, clocks = settings or SyncSettings(), clocks or Clocks.start()
        with (
            self._turn(cancel, face) as components,
            memory_errors(components.device),
            opened(video, settings, faces, components) as source,
        ):
            begun_s, settings, faces = time.perf_counter(), source.settings, source.faces
            inputs = probe_inputs(source.video, audio, output, overwrite=overwrite, audio_track=settings.audio_track)
            if isinstance(inputs.speech, Conversation) and (face, faces) != (None, None):
                raise SettingsError("several recordings: `face` and a table of faces are for one person")
            if faces is not None and face is not None:
                raise SettingsError("face: a table of faces has one for each frame, there is nothing to choose from")
            table = None if faces is None else checked_table(faces, inputs.video.path, settings, self._runtime)
            signing = signing_for(self._runtime, output)
            job = file_job(components, inputs, output, settings, overwrite=overwrite, signing=signing, faces=table)
            job = replace(job, prepared=source.avatar)
            logger.info("%s: %d frames from %s and %s", output, job.n_frames, inputs.video.path, inputs.speech.path)
            watch = Watch(clocks, job.n_frames, on_progress, cancel)
            watch.report()
            counts = self._in_threads(components, watch, lambda threads: run(components, job, clocks, threads))
            watch.report()
            wall_s = time.perf_counter() - begun_s
            logger.info("%s: %d frames in %.1f s", output, counts.frames, wall_s)
            return SyncResult(
                output=Path(output),
                frames=counts.frames,
                duration_s=float(counts.frames / job.frame_rate),
                wall_s=wall_s,
                real_time_factor=float(wall_s * job.frame_rate / counts.frames),
                stages=stage_times(clocks),
                frames_with_face=counts.frames_with_face,
                frames_without=counts.frames_without,
                spans_without=tuple(counts.spans_without),
                settings=settings_used(components, settings, self._runtime)
                | {"frame_rate": float(job.frame_rate)}
                | ({} if table is None else {"detector": table.detector}),
            )

    def analyse(
        self,
        video: str | Path | VideoInfo,
        settings: SyncSettings | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> FaceTable:
        """Find the face in every frame of a video, once for all speeches and models: pass it as `faces`.

        settings: their `detect_every` is used. Raises InputError, NoFaceError, ModelError, Cancelled.
        """
        settings, clocks = settings or SyncSettings(), Clocks.start()
        with self._turn(cancel, None) as components, memory_errors(components.device):
            info = video if isinstance(video, VideoInfo) else probe(video)
            rate = rate_of(components, info, settings)
            watch = Watch(clocks, round(rate * Fraction(info.duration_s or 0)), on_progress, cancel)
            watch.report()
            return self._in_threads(
                components, watch, lambda threads: analyse(components, info, settings, clocks, threads)
            )

    def map(
        self, jobs: Iterable[SyncJob], *, cancel: threading.Event | None = None
    ) -> Generator[JobResult, None, None]:
        """Yield what became of each job, in turn: its result, or the error that ended it while the others go on.

        Raises Cancelled.
        """

        def work(job: SyncJob) -> SyncResult:
            return self(job.video, job.audio, job.output, job.settings, overwrite=job.overwrite, cancel=cancel)

        for job in jobs:
            yield run_job(job, work)

    def frames(
        self,
        images: Iterable[ArrayLike],
        samples: ArrayLike | Iterable[ArrayLike],
        sample_rate_hz: int,
        settings: SyncSettings | None = None,
        *,
        frame_rate_hz: int = FRAME_RATE_HZ,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        face: FaceChoice | None = None,
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Yield the frames of a clip in memory with the mouth saying `samples`: (height, width, 3) uint8 RGB.

        images: (height, width, 3) uint8 RGB, all of one size, `frame_rate_hz` of them per second, which must be 25;
        taken as they are needed, in a thread of the run, and copied. samples: float32 (n,) or (channels, n), full scale
        1, or an iterable of such blocks, which is read to its end first. round(25 n / sample_rate_hz) frames come out,
        those that `__call__` would encode, before chroma is made as coarse as the file's. Where the images end earlier,
        `settings.loop` says what follows; "pingpong" needs images that can be iterated again. The settings of the
        encoder are not used.

        Work begins when the first frame is asked for and goes on in the background, in bounded memory. Other calls
        wait until the generator is exhausted or closed, which ends its threads. on_progress, cancel (both
        while a frame is waited for) and face: as for `__call__`.

        Raises SettingsError, InputError, NoFaceError (after the last frame, if none has a face), ModelError,
        OutOfMemoryError, Cancelled.
        """
        _check_rate(frame_rate_hz)
        settings = settings or SyncSettings()
        return self._add(
            self._in_memory(pasted_pictures, images, samples, sample_rate_hz, settings, on_progress, cancel, face)
        )

    def crops(
        self,
        images: Iterable[ArrayLike],
        samples: ArrayLike | Iterable[ArrayLike],
        sample_rate_hz: int,
        settings: SyncSettings | None = None,
        *,
        frame_rate_hz: int = FRAME_RATE_HZ,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        face: FaceChoice | None = None,
    ) -> Generator[GeneratedCrop, None, None]:
        """Yield the generated face of each frame and its affine matrix in place of whole frames; else as `frames`.

        The crops are as generated: `settings.texture` and `settings.match_color` are not used.
        """
        _check_rate(frame_rate_hz)
        settings = replace(settings or SyncSettings(), texture="generated", match_color="off")
        return self._add(
            self._in_memory(generated_crops, images, samples, sample_rate_hz, settings, on_progress, cancel, face)
        )


def _check_rate(frame_rate_hz: int) -> None:
    if frame_rate_hz != FRAME_RATE_HZ:
        raise SettingsError(
            f"frame_rate_hz = {frame_rate_hz}: must be {FRAME_RATE_HZ}",
            fix="resample the images",
            setting="frame_rate_hz",
        )
