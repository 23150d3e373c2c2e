"""LipSync: load a model once, sync as many clips as you like."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipstream.audio_features.mel import log_mel_maximum
from lipstream.errors import Cancelled, SettingsError
from lipstream.face.registry import Detector, make_detector
from lipstream.media.audio import SpeechInfo, n_output_frames, probe_speech
from lipstream.media.reader import VideoInfo, probe
from lipstream.media.writer import VideoWriter, check_output
from lipstream.models.load import Model, load_model
from lipstream.pipeline.build import build_components
from lipstream.pipeline.clocks import Clocks
from lipstream.pipeline.line import Job, run
from lipstream.pipeline.records import Components, Counts
from lipstream.pipeline.threads import ThreadGroup
from lipstream.runtime.cudnn import tuned_convolutions
from lipstream.runtime.device import dtypes, torch_device
from lipstream.runtime.memory import is_out_of_memory, out_of_memory
from lipstream.runtime.options import RuntimeFields, with_options
from lipstream.settings import FRAME_RATE_HZ, RuntimeSettings, SyncSettings
from lipstream.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_PROGRESS_S = 0.5


@dataclass(frozen=True)
class Inputs:
    """What the inputs of a run are."""

    video: VideoInfo
    speech: SpeechInfo


@dataclass(frozen=True)
class StageTime:
    """Busy seconds of one stage, summed over its threads, and the frames it has done."""

    name: str
    seconds: float
    frames: int


@dataclass(frozen=True)
class Progress:
    """How far a run has come: frames written of `n_frames`, and what each stage has done."""

    frames: int
    n_frames: int
    stages: tuple[StageTime, ...]


@dataclass(frozen=True)
class SyncResult:
    """What one run did. real_time_factor: wall seconds per second of video; below 1 is faster than real time."""

    output: Path
    frames: int
    duration_s: float
    wall_s: float
    real_time_factor: float
    stages: tuple[StageTime, ...]
    frames_with_face: int
    frames_without: int
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as the command line's JSON object."""
        values = asdict(self)
        faces = {name: values.pop(name) for name in ("frames_with_face", "frames_without")}
        return {**values, "output": str(self.output), "faces": faces}


class LipSync:
    """A loaded model and its face detector. Calls from several threads take turns.

    A context manager that closes it.
    """

    def __init__(self, model: Model, detector: Detector, runtime: RuntimeSettings) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._threads = ThreadGroup()  # of the last call
        self._components: Components | None = build_components(model, detector, runtime)
        self._log_loaded(self._components)

    @classmethod
    def load(
        cls, model: str | Path = "tiny", runtime: RuntimeSettings | None = None, **options: Unpack[RuntimeFields]
    ) -> LipSync:
        """Load a named model or a model folder.

        runtime: what to run on. options: fields of RuntimeSettings (device, precision, quantize, detector, threads,
        batch, ...), in place of `runtime` or of some of its fields. Raises SettingsError for an unknown field or a
        device that this machine does not have, ModelError for a model, a list of layers or a detector that cannot be
        loaded, OutOfMemoryError.
        """
        settings = with_options(runtime or RuntimeSettings(), dict(options))
        device = torch_device(settings)
        with _memory_errors(device):
            detector = make_detector(settings.detector, device)
            loaded = load_model(
                model, device, dtypes(settings, device), quantize=settings.quantize, pruned=settings.pruned
            )
            return cls(loaded, detector, settings)

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
        """Free the networks and the detector, after the call that is at work. Closing twice is allowed."""
        with self._lock:
            if self._components is None:
                return
            while not self._threads.join(_POLL_S):
                pass
            components, self._components = self._components, None
            components.detector.close()
            device = components.device
            del components
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def __call__(
        self,
        video: str | Path | VideoInfo,
        audio: str | Path | SpeechInfo,
        output: str | Path,
        settings: SyncSettings | None = None,
        *,
        overwrite: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
        clocks: Clocks | None = None,
    ) -> SyncResult:
        """Write `video` to `output` with the mouth saying `audio`; the file is whole or absent.

        video: anything PyAV reads. audio: a recording, or a video with a sound track. Both may be what `check_files`
        returned, so that they are not probed again. output: .mp4, .mov or .mkv. on_progress: called in this thread,
        once with all stages at zero, then every 0.5 s, and at the end; an exception that it raises ends the run.
        cancel: once set, ends the run within 2 s. clocks: to count on, for waits, CPU time and single calls. Raises
        InputError, NoFaceError, OutputError, SettingsError, ModelError, OutOfMemoryError, Cancelled.

        All threads of the run have ended when this returns or raises, but for one inside a library's call that takes
        longer than about 2 s, such as a step of a large model on a CPU: it ends after that, and the next call waits
        for it.
        """
        settings, clocks = settings or SyncSettings(), clocks or Clocks.start()
        with self._turn(cancel) as components, _memory_errors(components.device):
            begun_s = time.perf_counter()
            inputs = _probed(video, audio, output, overwrite=overwrite)
            job = self._job(components, inputs, output, settings, overwrite=overwrite)
            logger.info("%s: %d frames from %s and %s", output, job.n_frames, inputs.video.path, inputs.speech.path)
            counts = self._run(components, job, clocks, on_progress, cancel)
            frames = counts.frames_with_face + counts.frames_without
            wall_s = time.perf_counter() - begun_s
            logger.info("%s: %d frames in %.1f s", output, frames, wall_s)
            return SyncResult(
                output=Path(output),
                frames=frames,
                duration_s=frames / FRAME_RATE_HZ,
                wall_s=wall_s,
                real_time_factor=wall_s * FRAME_RATE_HZ / frames,
                stages=_times(clocks),
                frames_with_face=counts.frames_with_face,
                frames_without=counts.frames_without,
                settings=self._settings_used(components, settings),
            )

    @contextmanager
    def _turn(self, cancel: threading.Event | None) -> Iterator[Components]:
        """Hold the lock, with nothing left at work from the call before."""
        while not self._lock.acquire(timeout=_POLL_S):
            _raise_if_cancelled(cancel)
        try:
            while not self._threads.join(_POLL_S):
                _raise_if_cancelled(cancel)
            if self._components is None:
                raise SettingsError("this LipSync is closed", fix="load the model again with LipSync.load")
            yield self._components
        finally:
            self._lock.release()

    def _job(
        self, components: Components, inputs: Inputs, output: str | Path, settings: SyncSettings, *, overwrite: bool
    ) -> Job:
        video, n_frames = inputs.video, n_output_frames(inputs.speech, FRAME_RATE_HZ)

        def open_writer(samples: Generator[NDArray[np.float32], None, None]) -> VideoWriter:
            return VideoWriter(
                output,
                width=video.width,
                height=video.height,
                frame_rate=FRAME_RATE_HZ,
                color=video.color,
                speech=inputs.speech,
                speech_samples=samples,
                n_frames=n_frames,
                crf=settings.crf,
                preset=settings.x264_preset,
                sample_aspect_ratio=video.sample_aspect_ratio,
                overwrite=overwrite,
                metadata=ai_metadata(components.model.config.name),
            )

        return Job(video, inputs.speech, n_frames, settings, open_writer)

    def _run(
        self,
        components: Components,
        job: Job,
        clocks: Clocks,
        on_progress: Callable[[Progress], None] | None,
        cancel: threading.Event | None,
    ) -> Counts:
        """Run the job in threads of its own, and report here."""

        def report() -> None:
            if on_progress is not None:
                on_progress(Progress(clocks.write.frames, job.n_frames, _times(clocks)))

        report()
        begin_output, writers = job.open_writer, list[VideoWriter]()

        def open_writer(samples: Generator[NDArray[np.float32], None, None]) -> VideoWriter:
            writers.append(begin_output(samples))
            return writers[0]

        threads = self._threads = ThreadGroup()
        try:
            with tuned_convolutions(components.device), threads:
                job = replace(job, open_writer=open_writer)
                done = threads.call(lambda: run(components, job, clocks, threads), "write")
                _wait(done, report, cancel)
        finally:
            if threads.unfinished():  # the writing thread among them, perhaps
                for writer in writers:
                    writer.discard()
        if cancel is not None and cancel.is_set() and (not done.done() or done.exception() is not None):
            raise _cancelled()
        counts = done.result()
        report()
        return counts

    def _log_loaded(self, components: Components) -> None:
        logger.info(
            "model %s on %s: U-Net %s, VAE %s, audio encoder %s; detector %s, %d threads; %d windows per call",
            components.model.config.name,
            components.device,
            *(str(dtype).removeprefix("torch.") for dtype in _all_dtypes(components.model)),
            components.detector.name,
            components.threads,
            components.batch,
        )

    def _settings_used(self, components: Components, settings: SyncSettings) -> dict[str, Any]:
        """Return the settings with every choice made: what the result really ran with."""
        model, config = components.model, components.model.config
        unet, vae, audio_encoder = (str(dtype).removeprefix("torch.") for dtype in _all_dtypes(model))
        return {
            "model": config.name,
            **asdict(settings),
            **asdict(settings.sampling(config.num_inference_steps, config.guidance_scale)),
            "resolution": settings.resolution or config.resolution,
            "detect_every": settings.frames_per_detection(),
            "texture": settings.texture or config.texture,
            "device": str(components.device),
            "precision": unet,
            "vae_precision": vae,
            "audio_precision": audio_encoder,
            "quantize": model.source.quantize,
            "detector": components.detector.name,
            "threads": components.threads,
            "batch": components.batch,
            "compile": self._runtime.compile,
            "pruned_layers": len(model.source.left_out),
        }


def check_files(video: str | Path, audio: str | Path, output: str | Path, *, overwrite: bool) -> Inputs:
    """Return what the inputs are; LipSync takes them in place of the paths.

    Raises the InputError or OutputError that a run with these files would begin with.
    """
    return _probed(video, audio, output, overwrite=overwrite)


def ai_metadata(model: str) -> dict[str, str]:
    """Return what the written file says about itself."""
    return {"comment": f"Made with AI: lip movements generated by lipstream {__version__} with the model {model}."}


def _probed(
    video: str | Path | VideoInfo, audio: str | Path | SpeechInfo, output: str | Path, *, overwrite: bool
) -> Inputs:
    inputs = Inputs(
        video if isinstance(video, VideoInfo) else probe(video),
        audio if isinstance(audio, SpeechInfo) else probe_speech(audio, log_mel_maximum),
    )
    check_output(output, inputs=(inputs.video.path, inputs.speech.path), overwrite=overwrite)
    return inputs


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """Turn every kind of running out of memory into an OutOfMemoryError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, device) from error


def _wait(done: Future[Any], report: Callable[[], None], cancel: threading.Event | None) -> None:
    """Wait until a run is done or to be cancelled, reporting on a clock."""
    due_s = time.monotonic() + _PROGRESS_S
    while not wait([done], _POLL_S).done:
        if cancel is not None and cancel.is_set():
            return
        if time.monotonic() >= due_s:
            report()
            due_s = time.monotonic() + _PROGRESS_S


def _raise_if_cancelled(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise _cancelled()


def _cancelled() -> Cancelled:
    return Cancelled("stopped before its end; nothing was written")


def _all_dtypes(model: Model) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    return model.dtypes.unet, model.dtypes.vae, model.dtypes.audio_encoder


def _times(clocks: Clocks) -> tuple[StageTime, ...]:
    return tuple(StageTime(clock.name, round(clock.seconds, 4), clock.frames) for clock in clocks.in_order())
