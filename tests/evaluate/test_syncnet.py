"""SyncNet: equality with the published scoring, and what its loader and its score refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.syncnet import syncnet_tensors
from lipstream.errors import InputError, ModelError
from lipstream.evaluate import syncnet
from lipstream.evaluate.mfcc import mfcc


@pytest.fixture(scope="module")
def recorded(goldens):
    with np.load(goldens / "syncnet_io.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def network_file(recorded, tmp_path_factory):
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(syncnet_tensors(int(recorded["seed"])), path)
    return path


@pytest.fixture(scope="module")
def network(network_file):
    return syncnet.load_syncnet(network_file)


def relative_error(ours, golden):
    return np.linalg.norm(np.asarray(ours) - golden) / np.linalg.norm(golden)


def crops(recorded):
    return recorded["frames_small"].repeat(8, axis=1).repeat(8, axis=2)


def test_mfcc_as_published(recorded):
    ours = mfcc(recorded["audio"])
    assert ours.shape == recorded["mfcc"].shape
    assert relative_error(ours, recorded["mfcc"]) < 1e-10


def test_features_and_distances_as_published(recorded, network):
    n = len(recorded["lip"])
    lips = syncnet.lip_features(network, crops(recorded))
    assert len(lips) == len(recorded["frames_small"]) - 4
    assert relative_error(lips[:n], recorded["lip"]) < 1e-4
    speech = syncnet.speech_features(network, recorded["audio"], n)
    assert relative_error(speech, recorded["aud"]) < 1e-4
    score = syncnet.compared(lips[:n], speech)
    assert relative_error(score.mean_distances, recorded["mean_dists"]) < 1e-4
    assert score.offset == int(recorded["offset"])
    assert score.sync_d == pytest.approx(float(recorded["min_dist"]), rel=1e-4)
    # A confidence is a small difference of two distances: their errors are the measure of its own.
    assert score.sync_c == pytest.approx(float(recorded["confidence"]), abs=1e-4 * float(recorded["min_dist"]))


def test_windows_do_not_depend_on_where_a_batch_ends(recorded, network, monkeypatch):
    few = crops(recorded)[:9]
    whole = syncnet.lip_features(network, few)
    monkeypatch.setattr(syncnet, "_BATCH", 2)
    assert relative_error(syncnet.lip_features(network, few), whole.numpy()) < 1e-5


def test_scores_a_clip_of_unequal_lengths_up_to_the_shorter_end(recorded, network):
    score = syncnet.score(network, crops(recorded)[:10], recorded["audio"])
    lips = syncnet.lip_features(network, crops(recorded)[:10])[:5]
    assert score == syncnet.compared(lips, syncnet.speech_features(network, recorded["audio"], 5))
    shorter = syncnet.score(network, crops(recorded)[:10], recorded["audio"][: 8 * 640])
    assert shorter != score


def test_speech_that_leads_gives_the_offset():
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 1024)).astype(np.float32))
    assert syncnet.compared(features[:50], features[4:54]).offset == 4
    assert syncnet.compared(features[4:54], features[:50]).offset == -4
    together = syncnet.compared(features, features)
    assert (together.offset, together.sync_d) == (0, pytest.approx(0, abs=1e-4))
    assert together.sync_c > 10


def test_too_short_a_clip_is_refused(recorded, network):
    with pytest.raises(InputError, match="six frames"):
        syncnet.score(network, crops(recorded)[:5], recorded["audio"])
    with pytest.raises(InputError, match="six frames"):
        syncnet.score(network, crops(recorded)[:8], recorded["audio"][: 6 * 640 - 1])


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_another_file_is_refused(tmp_path, change):
    tensors, path = syncnet_tensors(), tmp_path / "other.model"
    name = "netcnnlip.0.weight"
    if change == "missing":
        del tensors[name]
    else:
        tensors[name if change == "shape" else "netcnnlip.99.weight"] = torch.zeros(3)
    torch.save(tensors, path)
    with pytest.raises(ModelError, match="netcnnlip"):
        syncnet.load_syncnet(path)


def test_counters_of_newer_files_are_accepted(network_file, tmp_path):
    tensors = torch.load(network_file, weights_only=True)
    names = [name for name in syncnet.SyncNet().state_dict() if name.endswith("num_batches_tracked")]
    torch.save({**tensors, **dict.fromkeys(names, torch.tensor(7))}, tmp_path / "new.model")
    assert len(names) == 14
    syncnet.load_syncnet(tmp_path / "new.model")


@pytest.mark.parametrize("n", [1, 399, 400, 401, 560, 561, 48000 * 11])
def test_mfcc_of_any_length_is_finite(n):
    samples = np.zeros(n) if n % 2 else np.random.default_rng(0).integers(-32768, 32767, n)
    found = mfcc(samples)
    assert found.shape == (13, 1 + max(0, -(-(n - 400) // 160)))
    assert np.isfinite(found).all()
