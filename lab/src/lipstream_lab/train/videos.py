"""Which videos to train on, who speaks in each, and what is held out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lipstream.errors import InputError
from lipstream_lab.train.data import VIDEO_SUFFIXES, files_of


@dataclass(frozen=True)
class Video:
    """A video of one speaking person.

    name: unique among all videos. held_out: share of its frames, at the end, that is not trained on: 1 for a whole one.
    """

    path: Path
    name: str
    person: str
    held_out: float


def find_videos(folder: Path, held_out: float, left_out: Collection[str] = ()) -> list[Video]:
    """Return the videos of a folder, sorted by name.

    A subfolder holds the videos of one person, and is that person's name. `held_out` of them are held out whole, evenly
    spread, where there are so many: sentences never trained on. A file in the folder itself is a person of its own, of
    whom the end is held out. left_out: people to hold out altogether. Raises InputError if one of them is not there.
    """
    alone = [Video(path, path.stem, path.stem, held_out) for path in files_of(folder, VIDEO_SUFFIXES)]
    videos = alone + [
        Video(path, f"{person.name}-{path.stem}", person.name, float(_is_held_out(index, held_out)))
        for person in sorted(p for p in folder.iterdir() if p.is_dir())
        for index, path in enumerate(files_of(person, VIDEO_SUFFIXES))
    ]
    people = {video.person for video in videos}
    for name in left_out:
        if name not in people:
            raise InputError(f"shows no {name}", file=folder, fix=f"leave out some of: {', '.join(sorted(people))}")
    return [Video(v.path, v.name, v.person, 1.0) if v.person in left_out else v for v in videos]


def _is_held_out(index: int, share: float) -> bool:
    """Spread the held-out ones evenly: with a fifth, the fifth, the tenth and so on."""
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)
