"""A Ray cluster before any work is given to it: whether it answers, what its nodes have, what they see."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipstream.errors import InputError, SettingsError
from lipstream.version import __version__

LOCAL = "local"

_CONNECT_S = 5.0
_NODE_S = 120.0


@dataclass(frozen=True)
class RaySettings:
    """Which cluster, and what of it. address: of its head, or "local" for one of this machine alone.

    actors: how many, None for as many as there are GPUs, or nodes where there are none. gpus: for each, may be a
    fraction; None for one where there are any.
    """

    address: str
    actors: int | None = None
    gpus: float | None = None


def connect(address: str) -> None:
    """Join a cluster, or start one of this machine alone. Raises SettingsError where that is not possible."""
    ray = ray_library()
    _check_reachable(address)
    is_local, terminate = address == LOCAL, signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local" if is_local else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({"include_dashboard": False} if is_local else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        message = f"the Ray cluster cannot be used ({short(error)})"
        raise SettingsError(message, file=address, fix="check --ray") from error
    if threading.current_thread() is threading.main_thread() and terminate is not None:
        signal.signal(signal.SIGTERM, terminate)  # Ray's own ends the process where it stands


def actors_of(cluster: RaySettings) -> tuple[int, dict[str, float]]:
    """Return how many actors a cluster is given, and Ray's options for what each one holds."""
    n_gpus = ray_library().cluster_resources().get("GPU", 0)
    gpus = cluster.gpus if cluster.gpus is not None else float(n_gpus > 0)
    n_nodes, cpus = len(_nodes()), int(min(node["Resources"].get("CPU", 1) for node in _nodes()))
    n_actors = cluster.actors or (max(1, int(n_gpus / gpus)) if gpus else n_nodes)
    if gpus:
        return n_actors, {"num_cpus": 1, "num_gpus": gpus}
    # Ray gives a process as many threads as it holds CPUs: they are shared out among the actors of a node.
    return n_actors, {"num_cpus": max(1, cpus // -(-n_actors // n_nodes)), "num_gpus": 0}


def check_nodes(address: str) -> None:
    """Refuse a cluster in which a node has no lipstream of this version. Raises SettingsError that names the node."""
    for node, version in _on_each_node(_version).items():
        if version != __version__:
            found = f"lipstream {version}" if isinstance(version, str) else f"no lipstream ({short(version)})"
            raise SettingsError(
                f"node {node} has {found}, and this machine {__version__}",
                file=address,
                fix=f"install lipstream {__version__} on every node",
            )


def check_seen(paths: Sequence[Path]) -> None:
    """Refuse files that a node does not see. Raises InputError that names the node."""
    for node, unseen in _on_each_node(_unseen, [path.resolve() for path in paths]).items():
        if unseen:
            missing = unseen[0] if isinstance(unseen, list) else paths[0]
            raise InputError(
                f"node {node} does not see it", file=missing, fix="put it, and --work, on storage that all nodes share"
            )


def _version() -> str:
    return __version__


def _unseen(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if not path.exists()]


def _on_each_node(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return what a function returns on each node, by its address; the error where it fails."""
    ray = ray_library()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    calls = {}
    for node in _nodes():
        strategy = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        name = f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        calls[name] = remote.options(scheduling_strategy=strategy).remote(*arguments)
    results: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            results[name] = ray.get(call, timeout=_NODE_S)
        except ray.exceptions.RayError as error:
            results[name] = error
    return results


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray_library().nodes() if node["Alive"]]


def _check_reachable(address: str) -> None:
    """Raise SettingsError for an address at which nobody answers: Ray would wait for minutes, and end the process."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        if address not in (LOCAL, "auto"):
            raise SettingsError("--ray is not the address of a cluster", file=address, fix="write HOST:PORT or local")
        return
    try:
        with contextlib.closing(socket.create_connection((host, int(port)), _CONNECT_S)):
            return
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"no Ray cluster answers there ({short(error)})", file=address, fix="start it, or correct --ray"
        ) from error


def short(error: object) -> str:
    """Return an error as one short line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def ray_library() -> Any:
    """Return Ray. Raises SettingsError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise SettingsError("--ray needs Ray", fix="pip install 'lipstream[ray]'") from error
    return ray
