"""Run candidates on the user's clip: how long they take, and how far from the published behaviour they come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.perceptual import FaceNetworks
from lipstream.evaluate.quality import measure
from lipstream.evaluate.score import ClipFiles, Tools, score_clip
from lipstream.evaluate.syncnet import load_syncnet
from lipstream.face.registry import make_detector
from lipstream.lipsync import LipSync
from lipstream.models.network_files import locate_network_file
from lipstream.profiling.clips import Clip, Inputs, prepare, untouched
from lipstream.profiling.turns import timed
from lipstream.runtime.device import torch_device
from lipstream.settings import RuntimeSettings
from lipstream.tune.floors import Floor
from lipstream.tune.space import Candidate

_OF_SYNCNET = ("sync_c", "sync_d", "sync_offset")
_LOADED = 2


@dataclass(frozen=True)
class Measured:
    """What one run gave. seconds_per_frame: of the wall clock, file to file. values: measures by name."""

    seconds_per_frame: float
    values: dict[str, float | None]


class Runner:
    """Runs candidates of one model on the whole clip and on its first part, and keeps the published runs of both.

    A context manager. At most two models are loaded at a time. Raises what loading and running raise, and ModelError
    where a floor needs SyncNet and its file is not here.
    """

    def __init__(
        self,
        model: str,
        exact: Candidate,
        floors: Sequence[Floor],
        folder: Path,
        video: Path,
        speech: Path,
        duration_s: float | None,
        part_s: float,
    ) -> None:
        self._model, self._exact, self._folder = model, exact, folder
        self._device = torch_device(exact.runtime)
        (folder / "whole").mkdir()
        (folder / "part").mkdir()
        self._inputs = {
            "whole": prepare(folder / "whole", video, speech, duration_s=duration_s, synthetic=None),
            "part": prepare(folder / "part", video, speech, duration_s=part_s, synthetic=None),
        }
        self._loaded: dict[RuntimeSettings, LipSync] = {}
        self._detector = make_detector("mediapipe", "cpu")
        self._finder = MouthFinder(self._detector)
        self._scores_clips = any(floor.measure not in _OF_LIKENESS for floor in floors)
        needs_syncnet = any(floor.measure in _OF_SYNCNET for floor in floors)
        network = load_syncnet(locate_network_file("syncnet"), self._device) if needs_syncnet else None
        self._tools = Tools(self._finder, network, FaceNetworks())

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        for sync in self._loaded.values():
            sync.close()
        with closing(self._detector), closing(self._finder):
            pass

    @property
    def n_frames(self) -> int:
        """Frames of the whole clip."""
        return self._inputs["whole"].n_frames

    @property
    def is_one_part(self) -> bool:
        """Whether the whole clip is no longer than its first part."""
        return self.n_frames <= self._inputs["part"].n_frames

    def label(self) -> str:
        """Return the clip in words."""
        return self._inputs["whole"].label

    def reference(self, span: str) -> Measured:
        """Run the published behaviour on the "whole" clip or the first "part", to compare others with, once warm."""
        if span == "part":
            self.seconds(self._exact, span)
        return self._measured(self._exact, span, self._reference_path(span))

    def run(self, candidate: Candidate, span: str) -> Measured:
        """Run a candidate, and compare it with the published behaviour. Raises LipstreamError, RuntimeError."""
        output = self._folder / span / "candidate.mp4"
        return self._measured(candidate, span, output)

    def seconds(self, candidate: Candidate, span: str = "whole") -> float:
        """Return the seconds per frame of one more run, encoded as a user's is."""
        inputs, sync = self._inputs[span], self._sync(candidate)
        output = self._folder / span / "timed.mp4"
        timing = timed(lambda: sync(inputs.video, inputs.speech, output, candidate.sync, overwrite=True), self._device)
        return timing.wall_s / inputs.n_frames

    def _measured(self, candidate: Candidate, span: str, output: Path) -> Measured:
        inputs, sync = self._inputs[span], self._sync(candidate)
        # Lossless and with the least effort: it is the same for all, and what is compared is not the encoder's.
        settings = replace(candidate.sync, crf=0, x264_preset="ultrafast")
        timing = timed(lambda: sync(inputs.video, inputs.speech, output, settings, overwrite=True), self._device)
        return Measured(timing.wall_s / inputs.n_frames, self._values(inputs, span, output))

    def _values(self, inputs: Inputs, span: str, output: Path) -> dict[str, float | None]:
        reference = Clip(self._reference_path(span), inputs.n_frames)
        pictures, before = Clip(output, inputs.n_frames), untouched(inputs, self._exact.sync.loop)
        quality = asdict(measure(reference, pictures, before, finder=self._finder))
        values = {name: quality[name] for name in _OF_LIKENESS}
        if self._scores_clips:
            files = ClipFiles(output, source=before.path, speech=inputs.speech)
            values = {**score_clip(files, self._tools).measures, **values}
        if output == reference.path:  # nothing to compare with but itself
            values |= {"ssim": 1.0, "psnr_db": math.inf, "landmark_distance": 0.0, "opening_correlation": 1.0}
        return values

    def _reference_path(self, span: str) -> Path:
        return self._folder / span / "exact.mp4"

    def _sync(self, candidate: Candidate) -> LipSync:
        """Return the loaded model, the one unused for longest making room for another."""
        sync = self._loaded.pop(candidate.runtime, None)
        if sync is None:
            while len(self._loaded) >= _LOADED:
                self._loaded.pop(next(iter(self._loaded))).close()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            sync = LipSync.load(self._model, candidate.runtime)
        self._loaded[candidate.runtime] = sync
        return sync


_OF_LIKENESS = (
    *("psnr_db", "ssim", "landmark_distance", "opening_correlation"),
    *("sharpness", "reference_sharpness", "flicker", "reference_flicker", "edge_step", "reference_edge_step"),
)
