"""Many jobs: lists of them, what becomes of each, and going on after some are done."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.cli import error_line, run
from helpers.pipeline import read_images, write_speech
from lipstream import InputError, LipSync, OutputError, SettingsError, SyncJob, SyncSettings
from lipstream.bundled import sample
from lipstream.errors import Cancelled, LipstreamError
from lipstream.results import SyncResult
from lipstream.scale.batch import JOURNAL, Journal, in_threads, refuse_existing, run_batch, write_report
from lipstream.scale.job_list import read_jobs


def listed(path: Path, **options: Any) -> list[SyncJob]:
    return read_jobs(path, str(path.parent / "out"), SyncSettings(seed=5), overwrite=False, **options)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_csv_and_a_toml_file_say_the_same(tmp_path: Path) -> None:
    table = written(
        tmp_path / "jobs.csv",
        "video,audio,output,num_inference_steps,guidance_interval,preset\n"
        'a.mp4,"one, two.wav",,4,"0,0.5",\n'
        "s3://bucket/a.mp4,b.wav,sub/b.mkv,,,fast\n",
    )
    toml = written(
        tmp_path / "jobs.toml",
        '[[job]]\nvideo = "a.mp4"\naudio = "one, two.wav"\nnum_inference_steps = 4\nguidance_interval = [0, 0.5]\n'
        '[[job]]\nvideo = "s3://bucket/a.mp4"\naudio = "b.wav"\noutput = "sub/b.mkv"\npreset = "fast"\n',
    )
    jobs = listed(table)
    assert [replace(job, name="") for job in jobs] == [replace(job, name="") for job in listed(toml)]
    assert [job.name for job in jobs] == ["row 2", "row 3"]
    assert [job.video for job in jobs] == [str(tmp_path / "a.mp4"), "s3://bucket/a.mp4"]
    assert [job.output for job in jobs] == [str(tmp_path / "out" / name) for name in ("a-one, two.mp4", "sub/b.mkv")]
    assert jobs[0].settings == SyncSettings(seed=5, num_inference_steps=4, guidance_interval=(0, 0.5))
    assert jobs[1].settings == SyncSettings(seed=5, preset="fast")
    common = written(tmp_path / "common.toml", f"[settings]\nseed = 9\ncrf = 30\n{toml.read_text()}crf = 20\n")
    assert [(job.settings.seed, job.settings.crf) for job in listed(common)] == [(9, 30), (9, 20)]


def test_a_folder_of_pairs(tmp_path: Path) -> None:
    for name in ("b.mp4", "b.wav", "a.mov", "a.flac", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    assert [Path(job.output).name for job in listed(tmp_path)] == ["a.mp4", "b.mp4"]
    assert [Path(job.audio).name for job in listed(tmp_path)] == ["a.flac", "b.wav"]
    (tmp_path / "c.mkv").touch()
    with pytest.raises(InputError, match=r"c.mkv: there is no speech of the same name beside it"):
        listed(tmp_path)
    (tmp_path / "c.mkv").rename(tmp_path / "c.wav")
    with pytest.raises(InputError, match=r"c.wav: there is no video of the same name"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("video,output\na.mp4,b.mp4\n", InputError, "there is no column 'audio'"),
        ("", InputError, "there is no column 'video'"),
        ("video,audio\n", InputError, "there is no job in it"),
        ("video,audio\na.mp4,b.wav\na.mp4,\n", InputError, "row 3: it has no audio"),
        ("video,audio\na.mp4\n", InputError, "row 2: not as many values as columns"),
        ("video,audio,output\na.mp4,b.wav,c.mp4\na.mp4,d.wav,./x/../c.mp4\n", OutputError, "row 3: .* that of row 2"),
        ("video,audio,output\na.mp4,b.wav,../c.mp4\n", OutputError, r"row 2: the output ../c.mp4 is outside of"),
        ("video,audio,output\na.mp4,b.wav,/tmp/c.mp4\n", OutputError, "row 2: the output /tmp/c.mp4 is outside of"),
        ("video,audio,output\na.mp4,b.wav,s3://other/c.mp4\n", OutputError, "row 2: .* is outside of"),
        ("video,audio,output\na.mp4,b.wav,c.txt\n", OutputError, "row 2: the output 'c.txt' is no video"),
        ("video,audio,seed\na.mp4,b.wav,many\n", SettingsError, "row 2: seed = 'many': must be"),
        ("video,audio,sed\na.mp4,b.wav,1\n", SettingsError, "row 2: 'sed' is not a field .* did you mean seed"),
        ('video,audio\n"a.mp4,b.wav\n', InputError, "not readable as CSV"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, kind: type[LipstreamError], match: str) -> None:
    with pytest.raises(kind, match=match) as raised:
        listed(written(tmp_path / "jobs.csv", text))
    assert raised.value.file == str(tmp_path / "jobs.csv")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[[job", "not readable as TOML"),
        ("job = 3\n", "'job' is not what it may hold"),
        ("[jobs]\n", "'jobs' is not what it may hold"),
        ('[[job]]\nvideo = 3\naudio = "a.wav"\n', "job 1: it has no video"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        listed(written(tmp_path / "jobs.toml", text))


def test_a_link_out_of_the_folder_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "away").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="outside of"):
        listed(written(tmp_path / "jobs.csv", "video,audio,output\na.mp4,b.wav,away/c.mp4\n"))


# Doing them, with work that takes no time


def result_of(job: SyncJob) -> SyncResult:
    Path(job.output).write_bytes(b"video")
    return SyncResult(Path(job.output), 25, 1.0, 0.1, 0.1, (), 24, 1, {})


def some(tmp_path: Path, n: int) -> list[SyncJob]:
    return [SyncJob("v.mp4", "a.wav", tmp_path / f"{i}.mp4", name=f"row {i}") for i in range(n)]


def batch(tmp_path: Path, jobs: Sequence[SyncJob], workers: Sequence[Callable[..., Any]], **more: Any) -> list[Any]:
    journal = Journal(tmp_path, "key", resume=more.pop("resume", False))
    refuse_existing(jobs, journal)
    return list(run_batch(jobs, in_threads(workers, more.pop("cancel", None)), journal, **more))


def test_a_failing_job_does_not_end_the_others(tmp_path: Path) -> None:
    def work(job: SyncJob) -> SyncResult:
        if job.name == "row 3":
            raise InputError("no such file", file="v.mp4", fix="check the path")
        if job.name == "row 5":
            raise ZeroDivisionError("by\nzero")
        return result_of(job)

    shown: list[Any] = []
    rows = batch(tmp_path, some(tmp_path, 50), [work] * 4, on_progress=shown.append)
    assert sorted(row["name"] for row in rows) == sorted(f"row {i}" for i in range(50))
    failed = {row["name"]: row for row in rows if row["state"] == "failed"}
    assert failed.keys() == {"row 3", "row 5"}
    assert failed["row 3"]["error"] == "v.mp4: no such file. Fix: check the path"
    assert failed["row 5"]["error_code"] == "internal"
    assert (shown[-1].n_jobs, shown[-1].done, shown[-1].failed) == (50, 48, 2)
    files = write_report(tmp_path, rows, 0.0)
    report = json.loads(files[0].read_text())
    assert (report["done"], report["failed"], len(report["jobs"])) == (48, 2, 50)
    with files[1].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["state"] for row in table] == [row["state"] for row in rows]
    assert table[0].keys() == rows[0].keys() == {
        "name", "state", "output", "wall_s", "frames", "frames_with_face", "retries", "error", "error_code"
    }  # fmt: skip


def test_resuming_does_what_is_left(tmp_path: Path) -> None:
    jobs, done = some(tmp_path, 6), list[str]()

    def work(job: SyncJob, failing: bool = False) -> SyncResult:
        done.append(job.name)
        if failing and job.name == "row 2":
            raise InputError("not yet there")
        return result_of(job)

    batch(tmp_path, jobs[:4], [lambda job: work(job, True)])
    assert done == ["row 0", "row 1", "row 2", "row 3"]
    (tmp_path / "1.mp4").unlink()
    with pytest.raises(OutputError, match=r"row 0: its output already exists"):
        batch(tmp_path, jobs, [work])
    # A process that was killed after an output was there and before it was noted, in the middle of a line.
    journal = Journal(tmp_path, "key", resume=True)
    journal.begin(jobs[4])
    result_of(jobs[4])
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"job": "')
    done.clear()
    rows = batch(tmp_path, jobs, [work], resume=True)
    assert done == ["row 1", "row 2", "row 5"]
    assert sorted(row["name"] for row in rows) == [f"row {i}" for i in range(6)]
    assert {row["state"] for row in rows} == {"done"}
    done.clear()
    assert len(batch(tmp_path, jobs, [work], resume=True)) == 6
    assert done == []
    other = [replace(job, settings=SyncSettings(seed=1)) for job in jobs]  # the outputs are of other settings
    with pytest.raises(OutputError, match="already exists"):
        batch(tmp_path, other, [work], resume=True)


def test_a_batch_is_stopped(tmp_path: Path) -> None:
    cancel, begun = threading.Event(), threading.Event()

    def work(job: SyncJob) -> SyncResult:
        begun.set()
        assert cancel.wait(20)
        raise Cancelled("stopped")

    threading.Thread(target=lambda: (begun.wait(20), cancel.set())).start()
    with pytest.raises(Cancelled):
        batch(tmp_path, some(tmp_path, 9), [work, work], cancel=cancel)


def test_map_yields_results_and_errors_in_turn(tmp_path: Path) -> None:
    speech = write_speech(tmp_path / "speech.wav", 0.2)
    jobs = [
        SyncJob(sample.VIDEO, speech, tmp_path / "one.mp4", name="one"),
        SyncJob(tmp_path / "missing.mp4", speech, tmp_path / "two.mp4", name="two"),
        SyncJob(sample.VIDEO, speech, tmp_path / "three.mkv", SyncSettings(crf=40), name="three"),
    ]
    with LipSync.load("tiny", device="cpu", detector="mediapipe") as sync:
        results = list(sync.map(jobs))
    assert [one.job for one in results] == jobs
    assert [one.state for one in results] == ["done", "failed", "done"]
    assert isinstance(results[1].error, InputError)
    assert results[2].result is not None and results[2].result.settings["crf"] == 40
    assert len(read_images(tmp_path / "three.mkv")) == 5


# The command line


def test_the_command_does_the_jobs_and_says_which_failed(tmp_path: Path) -> None:
    write_speech(tmp_path / "speech.wav", 0.3)
    (tmp_path / "bad.mp4").write_text("text")
    jobs = written(
        tmp_path / "jobs.csv",
        f"video,audio,output,crf\n{sample.VIDEO},speech.wav,sub/one.mp4,30\nbad.mp4,speech.wav,two.mp4,\n"
        f"{sample.VIDEO},speech.wav,three.mp4,\n",
    )
    words = ("batch", jobs, "-o", tmp_path / "out", "--detector", "mediapipe", "--device", "cpu,cpu")
    done = run(*words, "--json")
    assert done.returncode == 7, done.stderr
    report = json.loads(done.stdout)
    assert (report["done"], report["failed"]) == (2, 1)
    assert "lipstream: row 3: " in done.stderr and "bad.mp4: not a readable video" in done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["jobs"] == report["jobs"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "batch.jsonl", "report.csv", "report.json", "sub", "three.mp4"
    ]  # fmt: skip
    (tmp_path / "bad.mp4").write_bytes(sample.VIDEO.read_bytes())
    done = run(*words, "--resume", "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 jobs done, 0 failed" in done.stdout
    assert not (tmp_path / "work").exists()
    assert "its output already exists" in error_line(run(*words), 6)


def test_a_bad_list_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    jobs = written(tmp_path / "jobs.csv", "video\na.mp4\n")
    assert "there is no column 'audio'" in error_line(run("batch", jobs, "-o", tmp_path / "out"), 3)
    assert not (tmp_path / "out").exists()
    assert "no such file" in error_line(run("batch", tmp_path / "no.csv", "-o", tmp_path / "out"), 3)
    good = written(tmp_path / "good.csv", "video,audio\na.mp4,b.wav\n")
    assert "the report needs a folder here" in error_line(run("batch", good, "-o", "s3://bucket/out"), 2)
