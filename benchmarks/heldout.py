"""Does a model's mouth follow the speech? Measured on what it was not trained on, through the whole product.

python benchmarks/heldout.py OUT --videos CLIPS --shifts shifts.json --portraits FACES [--model FOLDER ...]

CLIPS, shifts.json: as for `lipstream train data`, and so are the held-out share and people. Of each person --per-person
held-out clips, or the end of the only one, are synced to their own sound, to another clip's and to silence; each
portrait and the bundled sample to espeak's speech. OUT gets a folder a model: the videos, a contact sheet a clip
(truth, own sound, other sound, silence), one of the mouths enlarged, and measures.json. Mouth opening: distance of the
inner lips over the face's height; its width, too; by mediapipe, in crops of 256 px cut alike from truth and result.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lipstream import LipSync, SyncSettings
from lipstream.bundled import sample
from lipstream.media.audio import read_mono
from lipstream.media.reader import read_frames
from lipstream.settings import Texture
from lipstream_lab.train.curves import write_sheet
from lipstream_lab.train.data import PICTURE_SUFFIXES, files_of, read_shifts
from lipstream_lab.train.dataset import n_training_frames
from lipstream_lab.train.videos import Video, find_videos
from mouths import FRAME_RATE_HZ, RATE_HZ, SAMPLES, Cutter, Faces, Floats, Region, correlation, loudness

BESIDES = ("other", "silence")
MOUTH = (slice(122, 194), slice(76, 180))  # rows and columns of a crop of 256 px
LIPS = (61, 291, 78, 308, 0, 17, 13, 14, 37, 267, 84, 314, 82, 312, 87, 317, 80, 310, 88, 318)

Sync = Callable[[Path, Path, Path], None]


@dataclass(frozen=True)
class End:
    """The held-out end of a clip: a lossless video and its own sound, its affine matrices and its faces."""

    name: str
    video: Path
    sound: Path
    matrices: list[Any]
    truth: Faces


def measure_clip(
    sync: Sync, end: End, other_opening: Floats, sounds: dict[str, Path], out: Path, tools: tuple[Cutter, Region]
) -> dict[str, Any]:
    """The end of a clip with each of the sounds. other_opening: of the mouth that the other sound is of."""
    cutter, region = tools
    truth, opening = end.truth, end.truth.openings()
    made = {}
    for name, sound in sounds.items():
        result = out / f"{end.name}-{name}.mp4"
        sync(end.video, sound, result)
        made[name] = cutter.faces(result, end.matrices)
    n = min(len(faces.crops) for faces in (truth, *made.values()))
    own = made["own"]
    columns = np.linspace(0, n - 1, 10).astype(int).tolist()
    rows = [faces.crops[columns] for faces in (truth, *made.values())]
    write_sheet(rows, out / f"{end.name}.png")
    write_sheet([F.interpolate(r[(..., *MOUTH)], scale_factor=3) for r in rows], out / f"{end.name}-mouth.png")
    lips = np.linalg.norm(truth.points[:n][:, LIPS] - own.points[:n][:, LIPS], axis=-1)
    return {
        "frames": n,
        **{f"r_{name}": correlation(faces.openings()[:n], opening[:n]) for name, faces in made.items()},
        "r_width": correlation(own.widths()[:n], truth.widths()[:n]),
        "spread": round(float(np.nanstd(own.openings()[:n]) / np.nanstd(opening[:n])), 3),
        "mean_opening": [round(float(np.nanmean(x[:n])), 4) for x in (opening, own.openings())],
        "lip_distance_px": round(float(np.nanmean(lips)), 2),
        "psnr_db": region.psnr_db(truth.crops[:n], own.crops[:n]),
        "sharpness": region.sharpness(truth.crops[:n], own.crops[:n]),
        "mouth_sharpness": region.sharpness(truth.crops[:n], own.crops[:n], mouth=True),
        "flicker": region.flicker(truth.crops[:n], own.crops[:n]),
        "tint": region.tint(truth.crops[:n], own.crops[:n]),
        "seam": region.seam(truth.crops[:n], own.crops[:n]),
        **(dubbed(region, truth, made["other"], other_opening) if "other" in made else {}),
    }


def dubbed(region: Region, truth: Faces, made: Faces, other_opening: Floats) -> dict[str, float]:
    """What dubbing is about: the mouth against the one that said the other sound, and its sharpness.

    With its own sound a face that keeps the frame's texture is given the truth's: this one is not.
    """
    n = min(len(truth.crops), len(made.crops))
    return {
        "r_dubbed": correlation(made.openings()[:n], other_opening[:n]),
        "sharpness_other": region.sharpness(truth.crops[:n], made.crops[:n]),
    }


def measure_still(sync: Sync, picture: Path, speech: Path, result: Path, tools: Any) -> tuple[dict[str, Any], Faces]:
    """A portrait or the sample with a speech: there is no truth, so the mouth is held against the loudness."""
    cutter, region = tools
    sync(picture, speech, result)
    matrices = cutter.matrices(picture)
    n = sum(1 for _ in read_frames(result))
    given = cutter.faces(picture, matrices)
    repeated = [min(i, len(matrices) - 1) for i in range(n)]
    made = cutter.faces(result, [matrices[i] for i in repeated])
    opening = made.openings()
    words = {
        "r_loudness": correlation(opening, loudness(speech, n)),
        "opening_std": round(float(np.nanstd(opening)), 4),
        "sharpness": region.sharpness(given.crops[repeated], made.crops),
        "seam": region.seam(given.crops[repeated], made.crops),
    }
    return words, made


def cut_end(video: Video, folder: Path, shift_ms: float) -> tuple[Path, Path]:
    """The end of a clip that training does not see: a lossless video and its own sound, brought together."""
    n_frames = sum(1 for _ in read_frames(video.path))
    first = n_training_frames(n_frames, video.held_out)
    target, sound = folder / f"{video.name}.mkv", folder / f"{video.name}.wav"
    with av.open(str(target), "w") as container:
        stream = None
        for frame in read_frames(video.path):
            if frame.index < first:
                continue
            if stream is None:
                stream = container.add_stream("ffv1", rate=FRAME_RATE_HZ)
                stream.height, stream.width = frame.image.shape[:2]
                stream.pix_fmt = "bgr0"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
        assert stream is not None
        container.mux(stream.encode(None))
    begin = first * SAMPLES + round(shift_ms / 1000 * RATE_HZ)
    samples = np.concatenate(list(read_mono(video.path)))
    part = np.pad(samples, (max(-begin, 0), 0))[max(begin, 0) :][: (n_frames - first) * SAMPLES]
    write_wav(sound, part)
    return target, sound


def write_wav(path: Path, samples: NDArray[np.float32]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def held_out_videos(args: argparse.Namespace) -> list[Video]:
    """The first few of each person."""
    videos = [v for v in find_videos(args.videos, args.held_out, args.leave_out) if v.held_out > 0]
    of_person = [[v for v in videos if v.person == person] for person in dict.fromkeys(v.person for v in videos)]
    return [v for own in of_person for v in own[: args.per_person]]


def cut_ends(args: argparse.Namespace, folder: Path, cutter: Cutter) -> list[End]:
    shifts = read_shifts(args.shifts) if args.shifts else {}
    ends = []
    for source in held_out_videos(args):
        video, sound = cut_end(source, folder, shifts.get(source.name, 0.0))
        matrices = cutter.matrices(video)
        ends.append(End(source.name, video, sound, matrices, cutter.faces(video, matrices)))
    return ends


def measure_clips(
    sync: Sync, ends: list[End], besides: list[str], out: Path, folder: Path, tools: Any
) -> dict[str, Any]:
    found = {}
    for index, end in enumerate(ends):
        length = len(np.concatenate(list(read_mono(end.sound))))
        following = ends[(index + 1) % len(ends)]
        other = np.concatenate(list(read_mono(following.sound)))
        sounds = {"own": end.sound, "other": folder / "other.wav", "silence": folder / "silence.wav"}
        write_wav(sounds["other"], np.resize(other, length))
        write_wav(sounds["silence"], np.zeros(length, np.float32))
        other_opening = np.resize(following.truth.openings(), len(end.truth.crops))
        found[end.name] = measure_clip(
            sync, end, other_opening, {name: sounds[name] for name in ("own", *besides)}, out, tools
        )
        print(end.name, json.dumps(found[end.name]), flush=True)
    return found


def measure_stills(sync: Sync, args: argparse.Namespace, out: Path, folder: Path, tools: Any) -> dict[str, Any]:
    speech = folder / "speech.wav"
    write_wav(speech, np.concatenate(list(read_mono(sample.SPEECH)))[: round(args.still_seconds * RATE_HZ)])
    found, rows = {}, []
    for picture in files_of(args.portraits, PICTURE_SUFFIXES):
        words, made = measure_still(sync, picture, speech, folder / "still.mp4", tools)
        found[picture.stem] = words
        loud = np.argsort(loudness(speech, len(made.crops)))
        rows.append(made.crops[[loud[1], loud[3], loud[-4], loud[-2], loud[-1]]])
    pairs = [torch.cat(rows[i : i + 3]) for i in range(0, len(rows) - 2, 3)]
    write_sheet([F.interpolate(row, size=(128, 128), mode="area") for row in pairs], out / "portraits.png")
    print("portraits", json.dumps(mean_of(found)), flush=True)
    return found


def mean_of(found: dict[str, Any]) -> dict[str, float]:
    """The mean of each number over clips or portraits."""
    names = [name for name, value in next(iter(found.values())).items() if isinstance(value, float)]
    return {name: round(float(np.mean([words[name] for words in found.values()])), 3) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", nargs="+", default=["tiny"])
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--shifts", type=Path)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="PERSON")
    parser.add_argument("--per-person", type=int, default=3, metavar="N")
    parser.add_argument("--portraits", type=Path)
    parser.add_argument("--besides", nargs="*", choices=BESIDES, default=BESIDES, help="the clip's own sound")
    parser.add_argument("--guidance-scale", type=float, help="[the model's own]")
    parser.add_argument("--texture", choices=get_args(Texture), help="[the model's own]")
    parser.add_argument("--still-seconds", type=float, default=2.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cutter = Cutter()
        ends = cut_ends(args, Path(name), cutter) if args.videos else []
        for model in args.model:
            measure_model(model, ends, args, Path(name), cutter)


def measure_model(model: str, ends: list[End], args: argparse.Namespace, folder: Path, cutter: Cutter) -> None:
    out = args.out / Path(model).name
    out.mkdir(parents=True, exist_ok=True)
    loaded = LipSync.load(model, detector="mediapipe")
    settings = SyncSettings(guidance_scale=args.guidance_scale, texture=args.texture)

    def sync(video: Path, speech: Path, output: Path) -> None:
        loaded(video, speech, output, settings, overwrite=True)

    tools = (cutter, Region.of(model))
    measures: dict[str, Any] = {"model": model, "guidance_scale": args.guidance_scale}
    words, made = measure_still(sync, sample.VIDEO, sample.SPEECH, out / "sample.mp4", tools)
    measures["sample"] = words
    print(model, "sample", json.dumps(words), flush=True)
    write_sheet(list(made.crops[30:70].split(10)), out / "sample.png")
    if ends:
        measures["clips"] = measure_clips(sync, ends, args.besides, out, folder, tools)
        measures["clips_mean"] = mean_of(measures["clips"])
        print("clips", json.dumps(measures["clips_mean"]), flush=True)
    if args.portraits:
        measures["portraits"] = measure_stills(sync, args, out, folder, tools)
        measures["portraits_mean"] = mean_of(measures["portraits"])
    (out / "measures.json").write_text(json.dumps(measures, indent=1) + "\n")


if __name__ == "__main__":
    main()
