"""`lipstream export onnx`, the cache behind `--engine`, and int8, through the real command line."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.cli import error_line, run
from lipstream import ModelError, OutputError, RuntimeSettings
from lipstream.bundled import sample
from lipstream.engines import model as engine_model
from lipstream.engines.cache import clear, entries
from lipstream.engines.graphs import GRAPHS, by_window
from lipstream.engines.quantize import Recorder
from lipstream.engines.weights import WEIGHTS_NAME, SharedWeights
from lipstream.models.exported import GRAPH_VERSION
from lipstream.models.whole_folder import whole_folder
from lipstream.runtime.device import Dtypes

CPU = torch.device("cpu")
pytestmark = pytest.mark.timeout(1200)
FP32 = Dtypes(torch.float32, torch.float32, torch.float32)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_sync_with_an_exported_folder_and_a_cached_export(
    exported: Path, model: Path, tmp_path: Path, cache: Path, engine: str
) -> None:
    """The model is found in the cache, as an export of its own would have left it there."""
    config = json.loads((exported / "lipstream.json").read_text())
    digest = config["exported"]["source_sha256"]
    shutil.copytree(exported, cache / f"small-64px-fp32-v{GRAPH_VERSION}-{digest[:16]}")
    files = ("sync", sample.VIDEO, sample.SPEECH, "--steps", 1, "--detector", "mediapipe", "--json", "--crf", 0)
    pictures = []
    for number, name in enumerate((exported, model)):
        output = tmp_path / f"{number}.mp4"
        done = run(*files, "-o", output, "--model", name, "--engine", engine, "--threads", 2)
        assert done.returncode == 0, done.stderr
        assert "exported once" not in done.stderr
        result = json.loads(done.stdout)
        assert (result["settings"]["engine"], result["frames"]) == (engine, 125)
        pictures.append(output.read_bytes())
    assert [entry.name.startswith("small-64px-fp32") for entry in entries()].count(True) >= 1


def test_engines_lists_and_clears_the_cache(cache: Path) -> None:
    (cache / "tiny-128px-fp32-v1-0123").mkdir(parents=True)
    (cache / "tiny-128px-fp32-v1-0123" / "graph.onnx").write_bytes(bytes(1000))
    listed = json.loads(run("engines", "list", "--json").stdout)
    assert listed["cache"] == str(cache)
    assert [(one["name"], one["size_bytes"]) for one in listed["entries"]] == [("tiny-128px-fp32-v1-0123", 1000)]
    assert listed["engines"]["onnxruntime"].startswith("onnxruntime ")
    assert json.loads(run("engines", "clear", "--json").stdout)["freed_bytes"] == 1000
    assert entries() == [] and not cache.exists()
    assert clear() == 0


def test_wrong_options_and_folders_are_one_line(exported: Path, tmp_path: Path) -> None:
    error_line(run("export", "onnx", "tiny", "-o", tmp_path / "new", "--int8"), 2)
    assert "already exists" in error_line(run("export", "onnx", "tiny", "-o", exported), 6)
    assert "no such file" in error_line(
        run("export", "onnx", "tiny", "-o", tmp_path / "new", "--int8", "--calibrate", "no.mp4", "no.wav"), 3
    )
    assert "--engine" in error_line(run("export", "onnx", exported, "-o", tmp_path / "new"), 5)
    line = error_line(run("sync", sample.VIDEO, sample.SPEECH, "-o", tmp_path / "o.mp4", "--model", exported), 5)
    assert "--engine onnxruntime" in line
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_export_that_fails_leaves_nothing_in_the_cache(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lipstream.engines.export.export_graph", full)
    with pytest.raises(ModelError, match="No space left on device") as error:
        engine_model.open_model(model, RuntimeSettings(device="cpu", engine="onnxruntime"), CPU, FP32, 0)
    assert "LIPSTREAM_CACHE" in str(error.value)
    assert [path.name for path in cache.iterdir()] == ["digests.json"]


def test_two_processes_that_write_the_same_folder_leave_one_whole(tmp_path: Path) -> None:
    folder, barrier = tmp_path / "folder", threading.Barrier(2)

    def write(name: str) -> None:
        with whole_folder(folder, may_exist=True) as partial:
            (partial / "file").write_text(name)
            barrier.wait(10)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folder / "file").read_text() in ("a", "b")
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(OutputError, match="already exists"), whole_folder(folder):
        pass


def test_large_weights_lie_beside_the_graphs_each_once(tmp_path: Path) -> None:
    import onnx_ir

    weights = [onnx_ir.tensor(torch.full((64, 64), float(value)).numpy(), name=f"w{value}") for value in (1, 2, 1)]
    with SharedWeights(tmp_path, embedded_bytes=1000) as shared:
        for number, kept in enumerate((weights[:2], weights[2:])):
            values = [onnx_ir.Value(name=one.name, const_value=one) for one in kept]
            graph = onnx_ir.Graph([], [], nodes=[], initializers=values)
            model = onnx_ir.Model(graph, ir_version=10)
            shared.move(model)
            onnx_ir.save(model, tmp_path / f"{number}.onnx")
    assert (tmp_path / WEIGHTS_NAME).stat().st_size == 2 * 64 * 64 * 4
    read = onnx_ir.load(tmp_path / "1.onnx").graph.initializers["w1"].const_value
    assert read is not None and (read.numpy() == 1).all()


def test_calls_are_kept_evenly_while_calibrating() -> None:
    recorder = Recorder(calls=4)
    for number in range(20):
        recorder.add("graph", {"x": torch.tensor([number]), "other": torch.zeros(1)}, frozenset({"x"}))
    kept = [int(feeds["x"][0]) for feeds in recorder.feeds("graph")]
    assert len(kept) <= 4 and kept[0] == 0 and kept[-1] >= 12
    assert len({b - a for a, b in itertools.pairwise(kept)}) == 1
    assert recorder.feeds("never called") == []


def test_windows_of_frames() -> None:
    assert by_window(torch.zeros(6, 2, 3), 3).shape == (2, 3, 2, 3)


def test_int8_is_written_from_a_clip_and_stays_close(
    exported: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lipstream import calibration
    from lipstream.models.load import model_source, verify_model
    from lipstream.models.locate import read_config_values

    def copied(source: Any, values: Any, folder: Path, *arguments: Any, **words: Any) -> None:
        shutil.copytree(exported, folder)

    monkeypatch.setattr(calibration, "export_onnx", copied)
    folder, clip = tmp_path / "int8", (str(sample.VIDEO), str(sample.SPEECH))
    calibration.export_int8(
        model_source(model, CPU),
        read_config_values(model)[0],
        folder,
        "0" * 64,
        clip,
        resolution=None,
        on_graph=lambda *_: None,
    )
    assert len(verify_model(folder)) == len(GRAPHS)
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    for engine in ("onnxruntime", "openvino"):
        runtime = RuntimeSettings(device="cpu", engine=engine)  # type: ignore[arg-type]
        exact, int8 = (engine_model.open_model(one, runtime, CPU, FP32, 0) for one in (exported, folder))
        assert (exact.quantized, int8.quantized) == ("none", "int8")
        latents, found = (one.vae.encode(pixels).latent_dist.mode() for one in (exact, int8))
        assert not torch.equal(latents, found)
        assert float((found - latents).norm() / latents.norm()) < 0.2
