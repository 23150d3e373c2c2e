"""Read a list of jobs: a TOML or a CSV file, or a folder of pairs. Everything is checked before any job begins."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path, PurePath
from typing import Any

from lipstream.errors import InputError, LipstreamError, OutputError
from lipstream.jobs import SyncJob
from lipstream.scale.storage import is_address
from lipstream.settings import SyncSettings
from lipstream.settings_record import check_field_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_VIDEOS = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
_SPEECHES = {".wav", ".mp3", ".flac", ".m4a", ".ogg", ".opus", ".aac", ".wma", ".aiff", ".aif"}
_OUTPUTS = {".mp4", ".mov", ".mkv"}
_FILES = ("video", "audio", "output")
_COLUMNS = "video and audio, and may have output and fields of SyncSettings"


def read_jobs(jobs: Path, folder: str, settings: SyncSettings, *, overwrite: bool) -> list[SyncJob]:
    """Return the jobs of a file or folder, whose outputs lie in `folder`, a path or an address.

    A TOML file has an array of tables `job`, and may have a table `settings` for all of them; a CSV file has a header.
    Both have the columns video and audio, paths from the file's folder on, and may have output, a name in `folder`, and
    fields of SyncSettings. A folder holds videos, and beside each a recording of the same name.

    settings: where a job leaves them out. Raises InputError, SettingsError, OutputError that name the row.
    """
    if jobs.is_dir():
        rows = list(_pairs(jobs))
    elif not jobs.is_file():
        raise InputError("no such file", file=jobs, fix="name a .toml or .csv file, or a folder of pairs")
    elif jobs.suffix.lower() == ".toml":
        rows = list(_toml_rows(jobs))
    elif jobs.suffix.lower() == ".csv":
        rows = list(_csv_rows(jobs))
    else:
        raise InputError("not a list of jobs", file=jobs, fix="name a .toml or .csv file, or a folder of pairs")
    if not rows:
        raise InputError("there is no job in it", file=jobs, fix=f"give each job {_COLUMNS}")
    base = (jobs if jobs.is_dir() else jobs.parent).absolute()
    folder = folder if is_address(folder) else str(Path(folder).absolute())
    found = [_job(jobs, name, values, base, folder, settings, overwrite) for name, values in rows]
    _refuse_duplicates(jobs, found)
    return found


def _pairs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    speeches: dict[str, Path] = {}
    for path in files:
        if path.suffix.lower() in _SPEECHES:
            if path.stem in speeches:
                raise InputError(f"two recordings for {path.stem}", file=path, fix="leave one of them")
            speeches[path.stem] = path
    for path in files:
        if path.suffix.lower() not in _VIDEOS:
            continue
        if path.stem not in speeches:
            raise InputError("there is no speech of the same name beside it", file=path, fix=f"add {path.stem}.wav")
        speech = speeches.pop(path.stem)
        yield path.name, {"video": path.name, "audio": speech.name}
    for path in speeches.values():
        raise InputError("there is no video of the same name beside it", file=path, fix="add it, or move this away")


def _toml_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"not readable as TOML ({error})", file=path, fix="write [[job]] tables") from error
    unknown = content.keys() - {"job", "settings"}
    jobs, common = content.get("job", []), content.get("settings", {})
    tables = isinstance(jobs, list) and all(isinstance(one, dict) for one in jobs) and isinstance(common, dict)
    if unknown or not tables:
        name = next(iter(sorted(unknown)), "job")
        raise InputError(f"{name!r} is not what it may hold", file=path, fix="write [[job]] tables and [settings]")
    for number, values in enumerate(jobs, 1):
        yield f"job {number}", {**common, **values}


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {"video", "audio"} - set(rows.fieldnames or ())
            if missing:
                column = sorted(missing)[-1]
                raise InputError(f"there is no column {column!r}", file=path, fix=f"give each job {_COLUMNS}")
            for values in rows:
                name = f"row {rows.line_num}"
                if None in values or None in values.values():
                    raise InputError(f"{name}: not as many values as columns", file=path, fix="quote commas in values")
                yield name, {column: text for column, text in values.items() if text != ""}
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise InputError(f"not readable as CSV ({error})", file=path, fix="write it as UTF-8 with a header") from error


def _job(
    jobs: Path,
    name: str,
    values: Mapping[str, Any],
    base: Path,
    folder: str,
    settings: SyncSettings,
    overwrite: bool,
) -> SyncJob:
    for column in ("video", "audio"):
        if not isinstance(values.get(column), str) or not values[column]:
            raise InputError(f"{name}: it has no {column}", file=jobs, fix=f"give each job {_COLUMNS}")
    own = {column: value for column, value in values.items() if column not in _FILES}
    try:
        for column in own:
            check_field_name(SyncSettings, column)
        chosen = SyncSettings(**{f.name: getattr(settings, f.name) for f in fields(SyncSettings)} | _typed(own))
        output = _output(values, folder)
    except LipstreamError as error:
        raise type(error)(f"{name}: {error.message}", file=jobs, fix=error.fix) from None
    files = {column: _input(values[column], base) for column in ("video", "audio")}
    return SyncJob(**files, output=output, settings=chosen, overwrite=overwrite, name=name)


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with numbers for the texts that a CSV has."""
    return {name: _number(value) if isinstance(value, str) else value for name, value in values.items()}


def _number(text: str) -> Any:
    parts = text.split(",")
    if len(parts) > 1:
        return [_number(part) for part in parts]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _input(name: str, base: Path) -> str:
    return name if is_address(name) else str(base / name)


def _output(values: Mapping[str, Any], folder: str) -> str:
    """Return where a job's output goes. Raises OutputError for a name that leads out of the folder."""
    video, audio = (PurePath(values[column].split("?")[0]).stem for column in ("video", "audio"))
    name = values.get("output", f"{video}.mp4" if video == audio else f"{video}-{audio}.mp4")
    if not isinstance(name, str) or PurePath(name).suffix.lower() not in _OUTPUTS:
        raise OutputError(f"the output {name!r} is no video", fix="name it .mp4, .mov or .mkv")
    path = PurePath(os.path.normpath(name))
    outside = OutputError(f"the output {name} is outside of {folder}", fix="name a file in it")
    if path.is_absolute() or path.drive or ".." in path.parts or is_address(name):
        raise outside
    if is_address(folder):
        return f"{folder.rstrip('/')}/{path.as_posix()}"
    output = Path(folder) / path
    if not output.parent.resolve().is_relative_to(Path(folder).resolve()):  # by a link
        raise outside
    return str(output)


def _refuse_duplicates(jobs: Path, found: list[SyncJob]) -> None:
    names: dict[str, str] = {}
    for job in found:
        output = os.path.normcase(job.output)
        if output in names:
            raise OutputError(
                f"{job.name}: its output {PurePath(job.output).name} is also that of {names[output]}",
                file=jobs,
                fix="give each job an output of its own",
            )
        names[output] = job.name
