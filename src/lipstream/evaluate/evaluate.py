"""Score one clip or a folder of them, and write what was found: JSON, CSV and a page of plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from lipstream.errors import InputError, LipstreamError, ModelError
from lipstream.evaluate.lip_metrics import MouthFinder
from lipstream.evaluate.perceptual import find_networks
from lipstream.evaluate.plots import figure_class, page
from lipstream.evaluate.score import ClipFiles, ClipScore, OnProgress, Tools, score_clip
from lipstream.evaluate.summary import Failure, Report
from lipstream.evaluate.syncnet import SyncNet, load_syncnet
from lipstream.face.registry import make_detector
from lipstream.media.atomic import check_beside, write_whole
from lipstream.models.network_files import locate_network_file
from lipstream.runtime.device import torch_device
from lipstream.settings import RuntimeSettings

_VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".m4v")
_SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus")


def clips_of(folder: Path, reference: Path | None, source: Path | None, speech: Path | None) -> list[ClipFiles]:
    """Return the clips of a folder, by name, each with the files of its own stem in the other folders.

    Where one of these has no such file, the clip is scored without it. Raises InputError for what is no folder, or one
    without a video.
    """
    for one in (folder, reference, source, speech):
        if one is not None and not one.is_dir():
            raise InputError("not a folder", file=one, fix="with --folder, name folders with files of the same names")
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in _VIDEOS and path.is_file())
    if not videos:
        raise InputError(f"no video in it ({', '.join(_VIDEOS)})", file=folder, fix="name another folder")
    return [
        ClipFiles(
            video,
            _of_stem(reference, video.stem, _VIDEOS),
            _of_stem(source, video.stem, _VIDEOS),
            _of_stem(speech, video.stem, (*_SOUNDS, *_VIDEOS)),
        )
        for video in videos
    ]


def _of_stem(folder: Path | None, stem: str, suffixes: Sequence[str]) -> Path | None:
    if folder is None:
        return None
    places = (path for path in sorted(folder.iterdir()) if path.stem == stem)
    return next((path for suffix in suffixes for path in places if path.suffix.lower() == suffix), None)


def evaluate(
    clips: Sequence[ClipFiles],
    runtime: RuntimeSettings,
    *,
    syncnet: Path | None = None,
    networks: Path | None = None,
    on_clip: Callable[[str], None] = lambda message: None,
    on_progress: OnProgress | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Score clips one after the other; one that fails is counted and the rest go on.

    runtime: its detector finds the faces, its device computes SyncNet. syncnet: the published file, None for the hub's
    cache. networks: the folder of those of LPIPS, FID and FVD. on_clip: given which clip is next. on_report: given what
    is known after each clip. Raises ModelError for a network that is named and cannot be used.
    """
    device = torch_device(runtime)
    others, absent = find_networks(networks, device)
    network = _syncnet(syncnet, str(device), absent)
    scores: list[ClipScore] = []
    failures: list[Failure] = []
    report = Report((), (), {}, absent)
    with closing(make_detector(runtime.detector, device)) as detector, closing(MouthFinder(detector)) as finder:
        tools = Tools(finder, network, others, absent=absent)
        for index, files in enumerate(clips):
            on_clip(f"{files.video}: clip {index + 1} of {len(clips)}")
            try:
                scores.append(score_clip(files, tools, on_progress))
            except LipstreamError as error:
                if isinstance(error, ModelError):
                    raise
                failures.append(Failure(str(files.video), str(error)))
                if len(clips) == 1:
                    raise
            distances = {"fid": tools.fid.value(), "fvd": tools.fvd.value()}
            report = Report(tuple(scores), tuple(failures), distances, _absent_from_all(scores, absent))
            on_report(report)
    return report


def _syncnet(path: Path | None, device: str, absent: dict[str, str]) -> SyncNet | None:
    try:
        return load_syncnet(path or locate_network_file("syncnet"), device)
    except ModelError as error:
        if path is not None:
            raise
        absent |= dict.fromkeys(("sync_c", "sync_d", "sync_offset"), str(error))
        return None


def _absent_from_all(scores: Sequence[ClipScore], absent: dict[str, str]) -> dict[str, str]:
    """Return why a measure is missing from every clip, by its name."""
    if not scores:
        return absent
    names = {name for name, reason in scores[0].absent.items() if all(name in score.absent for score in scores)}
    return {name: reason for name, reason in scores[0].absent.items() if name in names}


def check_outputs(output: Path, *, inputs: Sequence[Path], overwrite: bool) -> tuple[Path, Path, Path]:
    """Return the paths of the JSON, CSV and PNG files, checked before any work. Raises OutputError, SettingsError."""
    paths = output, output.with_suffix(".csv"), output.with_suffix(".png")
    for path in paths:
        check_beside(path, inputs=inputs, overwrite=overwrite)
    figure_class()
    return paths


def write(report: Report, paths: tuple[Path, Path, Path]) -> None:
    """Write the report's three files, each whole or not at all. Raises OutputError."""
    contents = report.to_json(), report.to_csv(), page(report)
    for path, content in zip(paths, contents, strict=True):
        write_whole(path, content)
