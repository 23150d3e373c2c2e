"""The CPU cores that a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

MOST_THREADS = 8
"""Threads that face work takes by itself: enough for more than 100 frames per second, whatever the machine."""

_V2_QUOTA = "cpu.max"
_V1_QUOTA, _V1_PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"
_ROOT = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the number of CPU cores that this process may use: its affinity, and a container's quota rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = container_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def default_threads() -> int:
    """Return how many threads to use for face work where none were asked for: one per core, up to MOST_THREADS."""
    return min(cores(), MOST_THREADS)


def container_quota(root: Path = _ROOT, own_groups: Path = _OWN_GROUPS) -> float | None:
    """Return the cores that the control groups (version 1 or 2) allow this process, or None without a limit.

    root: where they are mounted. own_groups: the file that names the groups of this process.
    """
    try:
        lines = own_groups.read_text("utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            quotas += [_v2_quota(folder) for folder in _up(root, path)]
        elif "cpu" in controllers.split(","):
            mounts = {root / controllers, root / "cpu"}
            quotas += [_v1_quota(folder) for mount in mounts for folder in _up(mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _up(mount: Path, path: str) -> list[Path]:
    """Return a group's folder and all above it; in a container the path may be that of the host, so the root counts."""
    folder = mount / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent == mount or mount in parent.parents)]


def _v2_quota(folder: Path) -> float | None:
    try:
        quota_us, period_us = (folder / _V2_QUOTA).read_text("utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota_us == "max" else int(quota_us) / int(period_us)


def _v1_quota(folder: Path) -> float | None:
    try:
        quota_us, period_us = (int((folder / name).read_text("utf-8")) for name in (_V1_QUOTA, _V1_PERIOD))
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None
