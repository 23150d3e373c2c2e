"""A Triton server's graphs, called over gRPC: through shared memory where server and caller are on one host."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipstream.engines.extras import needs
from lipstream.errors import ModelError, SettingsError

logger = logging.getLogger(__name__)

_EXTRA = "triton"
_DTYPES = {"FP32": torch.float32, "FP16": torch.float16}
_NUMPY = {"FP32": np.float32, "FP16": np.float16}
_SHARED_MEMORY = "system_shared_memory"
_LOOPBACK = ("localhost", "127.", "[::1]")
_GREETING_S = 10.0
# Of one call: a window of the full-size model takes a CPU about a minute, and others may be before it.
_CALL_S = 900.0

Array = NDArray[Any]


@dataclass(frozen=True)
class ServedGraph:
    """What a server says of a graph. inputs, outputs: types (FP32, FP16) by name. max_batch: 0 for no batches."""

    name: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    max_batch: int
    parameters: Mapping[str, str]


class TritonServer:
    """A running server. May be used from several threads at the same time."""

    def __init__(self, url: str) -> None:
        """url: HOST:PORT of its gRPC service.

        Raises SettingsError where tritonclient is not installed or the address is none, ModelError for a server that
        does not answer.
        """
        host, colon, port = url.rpartition(":")
        if not host or not colon or "/" in url or not port.isdigit():
            raise SettingsError(
                f"triton_url = {url!r}: must be HOST:PORT of the server's gRPC service",
                fix="give it as tritonserver shows it, such as localhost:8001",
                setting="triton_url",
            )
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the exceptions say what goes wrong
        self._grpc: Any = needs("tritonclient.grpc", _EXTRA, "--engine triton")
        self._failure: type[Exception] = needs("tritonclient.utils", _EXTRA, "--engine triton").InferenceServerException
        self._url = url
        self._idle: list[_Caller] = []
        self._lock = threading.Lock()
        client = self._grpc.InferenceServerClient(url)
        try:
            extensions = client.get_server_metadata(client_timeout=_GREETING_S).extensions
        except self._failure as error:
            raise self._away(error) from error
        self._shares_memory = host.startswith(_LOOPBACK) and _SHARED_MEMORY in extensions

    def graph(self, name: str, version: str) -> ServedGraph | None:
        """Return what the server says of a graph, of any version if `version` is empty; None if it has none.

        Raises ModelError.
        """
        client = self._grpc.InferenceServerClient(self._url)
        try:
            config = client.get_model_config(name, version, client_timeout=_GREETING_S).config
            ready = version or client.get_model_metadata(name, client_timeout=_GREETING_S).versions[-1]
        except self._failure as error:
            if _is_away(error):
                raise self._away(error) from error
            return None
        type_name = self._grpc.model_config_pb2.DataType.Name
        return ServedGraph(
            name=name,
            version=str(ready),
            inputs={one.name: type_name(one.data_type).removeprefix("TYPE_") for one in config.input},
            outputs={one.name: type_name(one.data_type).removeprefix("TYPE_") for one in config.output},
            max_batch=config.max_batch_size,
            parameters={key: one.string_value for key, one in config.parameters.items()},
        )

    def run(self, graph: ServedGraph, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return a graph's outputs. Raises ModelError for a server that does not answer, or refuses."""
        with self._caller() as caller:
            try:
                return caller.call(graph, feeds)
            except self._failure as error:
                if _is_away(error):
                    raise self._away(error) from error
                raise ModelError(
                    f"{graph.name} failed in the server ({_reason(error)})",
                    file=self._url,
                    fix="look into tritonserver's log; if nothing helps, write the repository again",
                ) from error

    @contextlib.contextmanager
    def _caller(self) -> Iterator[_Caller]:
        """Lend a caller that no other thread uses. One that failed is not lent again."""
        with self._lock:
            caller = self._idle.pop() if self._idle else None
        caller = caller or _Caller(self._grpc, self._failure, self._url, self._shares_memory)
        yield caller
        with self._lock:
            self._idle.append(caller)

    def _away(self, error: Exception) -> ModelError:
        return ModelError(
            f"the Triton server does not answer ({_reason(error)})",
            file=self._url,
            fix="start tritonserver, or correct --triton-url",
        )


class ServedSession:
    """See lipstream.engines.sessions.Session."""

    def __init__(self, server: TritonServer, graph: ServedGraph) -> None:
        self._server, self._graph = server, graph

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self._graph.inputs)

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = next(iter(feeds.values())).device
        given = {
            name: feeds[name].to("cpu", _DTYPES[kind]).contiguous().numpy() for name, kind in self._graph.inputs.items()
        }
        n = len(next(iter(given.values())))
        size = self._graph.max_batch or n
        parts = [
            self._server.run(self._graph, {name: array[begin : begin + size] for name, array in given.items()})
            for begin in range(0, n, size)
        ]
        return {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts])).to(device)
            for name in self._graph.outputs
        }


class _Caller:
    """Makes one call at a time. Holds memory that it shares with the server, if both are on one host."""

    def __init__(self, grpc: Any, failure: type[Exception], url: str, shares_memory: bool) -> None:
        self._grpc, self._failure, self._shares_memory = grpc, failure, shares_memory
        self._client = grpc.InferenceServerClient(url)
        self._regions: dict[str, SharedMemory] = {}
        # Sizes of the outputs, bytes: known after the first call with inputs of these shapes.
        self._sizes: dict[tuple[Any, ...], dict[str, int]] = {}
        weakref.finalize(self, _release, self._client, self._regions, failure)

    def call(self, graph: ServedGraph, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return copies of a graph's outputs. Raises tritonclient's InferenceServerException."""
        key = (graph.name, *(array.shape for array in feeds.values()))
        shared_in = self._region("inputs", sum(array.nbytes for array in feeds.values()))
        shared_out = self._region("outputs", sum(self._sizes[key].values())) if key in self._sizes else None
        inputs, begin = [], 0
        for name, array in feeds.items():
            inputs.append(self._grpc.InferInput(name, array.shape, graph.inputs[name]))
            if shared_in is None:
                inputs[-1].set_data_from_numpy(array)
                continue
            np.ndarray(array.shape, array.dtype, shared_in.buf, begin)[...] = array
            inputs[-1].set_shared_memory(shared_in.name, array.nbytes, begin)
            begin += array.nbytes
        outputs, begins, begin = [], dict[str, int](), 0
        for name in graph.outputs:
            outputs.append(self._grpc.InferRequestedOutput(name))
            if shared_out is not None:
                outputs[-1].set_shared_memory(shared_out.name, self._sizes[key][name], begin)
                begins[name], begin = begin, begin + self._sizes[key][name]
        result = self._client.infer(graph.name, inputs, graph.version, outputs, client_timeout=_CALL_S)
        if shared_out is None:
            arrays = {name: result.as_numpy(name) for name in graph.outputs}
        else:
            arrays = {
                name: np.ndarray(
                    tuple(result.get_output(name).shape), _NUMPY[graph.outputs[name]], shared_out.buf, begins[name]
                ).copy()
                for name in graph.outputs
            }
        self._sizes[key] = {name: array.nbytes for name, array in arrays.items()}
        return arrays

    def _region(self, name: str, size_bytes: int) -> SharedMemory | None:
        """Return memory of at least that size that the server has mapped too, or None where it cannot."""
        if not self._shares_memory:
            return None
        held = self._regions.get(name)
        if held is not None and held.size >= size_bytes:
            return held
        if held is not None:
            _release(self._client, {name: self._regions.pop(name)}, self._failure)
        try:
            region = SharedMemory(f"lipstream-{uuid.uuid4().hex[:16]}", create=True, size=size_bytes)
        except OSError as error:
            logger.info("no shared memory (%s): tensors go over gRPC", error)
            self._shares_memory = False
            return None
        self._regions[name] = region
        try:
            self._client.register_system_shared_memory(
                region.name, f"/{region.name}", region.size, client_timeout=_GREETING_S
            )
        except self._failure as error:
            if _is_away(error):
                raise
            logger.info("the Triton server shares no memory (%s): tensors go over gRPC", _reason(error))
            self._shares_memory = False
            return None
        return region


def _release(client: Any, regions: dict[str, SharedMemory], failure: type[Exception]) -> None:
    """Give shared memory back, on both sides."""
    for region in regions.values():
        with contextlib.suppress(failure):  # the server is away, or never had it
            client.unregister_system_shared_memory(region.name, client_timeout=_GREETING_S)
        region.close()
        region.unlink()
    regions.clear()


def _is_away(error: Any) -> bool:
    return any(word in str(error.status()) for word in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"))


def _reason(error: Any) -> str:
    message = " ".join(str(error.message()).split())
    return message if len(message) < 200 else f"{message[:196]} ..."
