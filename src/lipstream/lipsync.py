"""LipSync: load a model once, sync as many clips as you like."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lipstream.accelerate.compile import compiled_step
from lipstream.accelerate.precision import Ladder
from lipstream.face.detect import Detector, make_detector
from lipstream.latent.batch import calls_side_by_side, windows_a_call
from lipstream.latent.denoise import UNetDenoiser
from lipstream.media.audio import SpeechInfo, n_output_frames, probe_speech
from lipstream.media.reader import VideoInfo, probe
from lipstream.media.writer import VideoWriter, check_output
from lipstream.models.load import Model, load_model
from lipstream.pipeline import Clocks, Ladders, Lanes, Line, run
from lipstream.runtime.cudnn import tuned_convolutions
from lipstream.runtime.device import dtypes, face_geometry, face_threads, torch_device
from lipstream.settings import FRAME_RATE_HZ, RuntimeSettings, SyncSettings
from lipstream.stages import StageClock
from lipstream.version import __version__


@dataclass(frozen=True)
class StageTime:
    """Busy seconds of one stage, summed over its threads, and the frames it handled."""

    name: str
    seconds: float
    frames: int


@dataclass(frozen=True)
class Progress:
    """How far a sync has come: frames written of `n_frames`, and what each stage has done."""

    frames: int
    n_frames: int
    stages: tuple[StageTime, ...]


@dataclass(frozen=True)
class SyncResult:
    """What one sync did. real_time_factor: wall seconds a second of video; below 1 is faster than real time."""

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
        """The result as the command line's JSON object."""
        words = asdict(self)
        faces = {name: words.pop(name) for name in ("frames_with_face", "frames_without")}
        return {**words, "output": str(self.output), "faces": faces}


class LipSync:
    """A loaded model and its face detector. Calls may follow one another; one call at a time."""

    def __init__(self, model: Model, detector: Detector, runtime: RuntimeSettings) -> None:
        self._runtime = runtime
        device, geometry = torch_device(runtime), face_geometry(runtime)
        batch = windows_a_call(runtime.batch, model, device)
        frames = batch * model.config.num_frames
        self._line = Line(
            model=model,
            denoiser=UNetDenoiser(model.unet, compiled_step(model.unet, frames) if runtime.compile else None),
            higher=Ladders(
                Ladder("U-Net", model.dtypes.unet, lambda dtype: UNetDenoiser(model.source.unet(dtype))),
                Ladder("VAE", model.dtypes.vae, model.source.vae),
                Ladder("audio encoder", model.dtypes.audio_encoder, model.source.audio_encoder),
            ),
            detector=detector,
            device=device,
            threads=face_threads(runtime),
            geometry=geometry,
            lanes=Lanes.to(device, geometry),
            batch=batch,
            side_by_side=calls_side_by_side(model.unet, runtime),
        )

    @classmethod
    def load(cls, model: str | Path = "tiny", **runtime: Any) -> LipSync:
        """Load a named model or a model folder.

        runtime: the fields of RuntimeSettings (device, precision, quantize, detector, threads, batch, pruned, ...).
        Raises SettingsError for a device this machine has not, ModelError for a model, a list of layers or a detector
        that cannot be loaded.
        """
        settings = RuntimeSettings(**runtime)
        device = torch_device(settings)
        detector = make_detector(settings.detector, device)
        loaded = load_model(model, device, dtypes(settings, device), quantize=settings.quantize, pruned=settings.pruned)
        return cls(loaded, detector, settings)

    def __call__(
        self,
        video: str | Path,
        speech: str | Path,
        output: str | Path,
        settings: SyncSettings | None = None,
        *,
        overwrite: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        clocks: Clocks | None = None,
    ) -> SyncResult:
        """Write `video` to `output` with the mouth saying `speech`; the file is whole or absent.

        video: anything PyAV reads. speech: a recording, or a video with a sound track. output: .mp4, .mov or .mkv.
        on_progress: called after each written frame. clocks: to count on, for who wants to know of waits, CPU time and
        single calls too. Raises InputError, NoFaceError, OutputError.
        """
        settings = settings or SyncSettings()
        begun_s = time.perf_counter()
        video_info, speech_info = check_files(video, speech, output, overwrite=overwrite)
        n_frames = n_output_frames(speech_info, FRAME_RATE_HZ)
        clocks = clocks or Clocks.start()

        def advance() -> None:
            if on_progress is not None:
                on_progress(Progress(clocks.write.frames, n_frames, _times(clocks)))

        writer = VideoWriter(
            output,
            width=video_info.width,
            height=video_info.height,
            frame_rate=FRAME_RATE_HZ,
            color=video_info.color,
            speech=speech_info,
            n_frames=n_frames,
            crf=settings.crf,
            preset=settings.x264_preset,
            sample_aspect_ratio=video_info.sample_aspect_ratio,
            overwrite=overwrite,
            metadata=ai_metadata(self._line.model.config.name),
        )
        with tuned_convolutions(self._line.device), _clocked_end(writer, clocks.write):
            counts = run(self._line, video_info, speech_info, writer, n_frames, settings, clocks, advance)
        frames = counts.frames_with_face + counts.frames_without
        wall_s = time.perf_counter() - begun_s
        return SyncResult(
            output=Path(output),
            frames=frames,
            duration_s=frames / FRAME_RATE_HZ,
            wall_s=wall_s,
            real_time_factor=wall_s * FRAME_RATE_HZ / frames,
            stages=_times(clocks),
            frames_with_face=counts.frames_with_face,
            frames_without=counts.frames_without,
            settings=self._settings_used(settings),
        )

    def _settings_used(self, settings: SyncSettings) -> dict[str, Any]:
        """The settings with every choice made: what the result really ran with."""
        model, device = self._line.model, self._line.device
        config, dtypes = model.config, model.dtypes
        return {
            "model": config.name,
            **asdict(settings),
            **asdict(settings.sampling(config.num_inference_steps, config.guidance_scale)),
            "resolution": settings.resolution or config.resolution,
            "search_every": settings.frames_a_search(),
            "texture": settings.texture or config.texture,
            "device": str(device),
            "precision": str(dtypes.unet).removeprefix("torch."),
            "vae_precision": str(dtypes.vae).removeprefix("torch."),
            "audio_precision": str(dtypes.audio_encoder).removeprefix("torch."),
            "quantize": model.source.quantize,
            "detector": self._line.detector.name,
            "threads": self._line.threads,
            "batch": self._line.batch,
            "compile": self._runtime.compile,
            "pruned_layers": len(self._line.model.source.left_out),
        }


def check_files(
    video: str | Path, speech: str | Path, output: str | Path, *, overwrite: bool
) -> tuple[VideoInfo, SpeechInfo]:
    """What the inputs are. Raises the InputError or OutputError that a sync of these files would begin with."""
    video_info, speech_info = probe(video), probe_speech(speech)
    check_output(output, inputs=(video_info.path, speech_info.path), overwrite=overwrite)
    return video_info, speech_info


def ai_metadata(model: str) -> dict[str, str]:
    """What the written file says of itself."""
    return {"comment": f"Made with AI: lip movements generated by lipstream {__version__} with the model {model}."}


@contextmanager
def _clocked_end(writer: VideoWriter, clock: StageClock) -> Iterator[None]:
    """As `with writer`, with the time it takes to finish the file counted: the encoder holds many frames back."""
    with ExitStack() as stack:
        stack.enter_context(writer)
        yield
        end = stack.pop_all()
    with clock.running(frames=0):
        end.close()


def _times(clocks: Clocks) -> tuple[StageTime, ...]:
    return tuple(StageTime(clock.name, round(clock.seconds, 4), clock.frames) for clock in clocks.in_order())
