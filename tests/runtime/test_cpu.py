"""How many cores a process may use: affinity, and control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lipstream import RuntimeSettings
from lipstream.runtime import cpu
from lipstream.runtime.device import face_threads


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_quota_of_version_2_is_the_lowest_of_all_groups_above(tmp_path: Path) -> None:
    groups = write(tmp_path / "groups", "0::/outer/inner\n")
    write(tmp_path / "root" / "outer" / "inner" / "cpu.max", "max 100000\n")
    assert cpu.container_quota(tmp_path / "root", groups) is None
    write(tmp_path / "root" / "outer" / "cpu.max", "250000 100000\n")
    assert cpu.container_quota(tmp_path / "root", groups) == 2.5


def test_in_a_container_the_root_counts_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    groups = write(tmp_path / "groups", "0::/on/the/host\n")
    write(tmp_path / "root" / "cpu.max", "150000 100000\n")
    assert cpu.container_quota(tmp_path / "root", groups) == 1.5


def test_a_quota_of_version_1(tmp_path: Path) -> None:
    groups = write(tmp_path / "groups", "5:memory:/box\n3:cpu,cpuacct:/box\n")
    folder = tmp_path / "root" / "cpu,cpuacct" / "box"
    write(folder / "cpu.cfs_quota_us", "-1\n")
    write(folder / "cpu.cfs_period_us", "100000\n")
    assert cpu.container_quota(tmp_path / "root", groups) is None
    write(folder / "cpu.cfs_quota_us", "300000\n")
    assert cpu.container_quota(tmp_path / "root", groups) == 3


def test_no_groups_are_no_limit(tmp_path: Path) -> None:
    assert cpu.container_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_threads_follow_affinity_and_quota_and_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cpu, "container_quota", lambda: None)
    assert cpu.cores() == 64
    assert face_threads(RuntimeSettings()) == 8
    assert face_threads(RuntimeSettings(threads=64)) == 64
    monkeypatch.setattr(cpu, "container_quota", lambda: 1.5)
    assert cpu.cores() == face_threads(RuntimeSettings()) == 2
    monkeypatch.setattr(cpu, "container_quota", lambda: 0.2)
    assert cpu.cores() == 1
