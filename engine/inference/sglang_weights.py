"""How a published set of weights reaches an SGLang server: three channels, one call.

    disk     the server reads the folder: also one in shared memory, or on a file system that all nodes mount
    tensor   this process reads it, and the server maps the tensors: one machine, or CUDA IPC
    group    this process reads it and broadcasts each tensor over a process group: other machines

Importing this module loads no torch; the last two channels do when they are first used.
"""

# torch and safetensors leave parts of their signatures open, and a second process group has no public call.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import asyncio
import base64
import io
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

from engine.errors import GeneratorError, boundary, cause
from engine.inference.sglang_http import SglangHttp
from engine.ports import free_port
from engine.types import WeightRef

if TYPE_CHECKING:
    from torch import Tensor

Channel = Literal["disk", "tensor", "group"]
BUCKET_BYTES = 512 * 2**20
"""Tensors sent in one call, at most (one larger tensor goes alone)."""


class WeightSender:
    """Sends weights to one server over one channel. Updates must not overlap."""

    def __init__(self, http: SglangHttp, *, channel: Channel, num_ranks: int, backend: str, timeout_s: float) -> None:
        """`num_ranks` is the server's tensor-parallel size; `backend` is the process group's, gloo or nccl."""
        self._http = http
        self._channel = channel
        self._num_ranks = num_ranks
        self._backend = backend
        self._timeout_s = timeout_s

    async def send(self, ref: WeightRef, *, flush: bool) -> None:
        """Replace the server's weights and stamp the version. Raises `GeneratorError`; the server may then hold a
        mixture, and must not be used."""
        if self._channel == "disk":
            body = {"model_path": ref.path, "weight_version": str(ref.version), "flush_cache": flush}
            await self._post("/update_weights_from_disk", body)
            return
        await self._post("/begin_weight_update", {})
        try:
            if self._channel == "tensor":
                await self._send_tensors(ref, flush=flush)
            else:
                await self._broadcast(ref, flush=flush)
        except ExceptionGroup as error:
            raise cause(error) from error
        finally:
            await self._post("/end_weight_update", {})

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        await self._http.post(path, body, timeout_s=self._timeout_s)

    async def _send_tensors(self, ref: WeightRef, *, flush: bool) -> None:
        for bucket, is_last in _buckets(ref.path):
            payload = _serialised(bucket)
            body: dict[str, Any] = {
                "serialized_named_tensors": [payload] * self._num_ranks,
                "flush_cache": flush and is_last,
                "weight_version": str(ref.version) if is_last else None,
            }
            await self._post("/update_weights_from_tensor", body)

    async def _broadcast(self, ref: WeightRef, *, flush: bool) -> None:
        async with self._group() as group:
            for bucket, is_last in _buckets(ref.path):
                body: dict[str, Any] = {
                    "names": [name for name, _ in bucket],
                    "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
                    "shapes": [list(tensor.shape) for _, tensor in bucket],
                    "group_name": group.name,
                    "flush_cache": flush and is_last,
                    "weight_version": str(ref.version) if is_last else None,
                }
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._post("/update_weights_from_distributed", body), name="receive weights")
                    both.create_task(asyncio.to_thread(group.broadcast, bucket), name="broadcast weights")

    @asynccontextmanager
    async def _group(self) -> AsyncGenerator["_Group", None]:
        """A process group of this process (rank 0) and the server's ranks, for the length of one update."""
        address = _address_towards(self._http.url)
        group = _Group(address, world_size=1 + self._num_ranks, backend=self._backend, timeout_s=self._timeout_s)
        body: dict[str, Any] = {
            "master_address": address,
            "master_port": group.port,
            "rank_offset": 1,
            "world_size": group.world_size,
            "group_name": group.name,
            "backend": self._backend,
        }
        async with asyncio.TaskGroup() as both:
            both.create_task(self._post("/init_weights_update_group", body), name="join the update group")
            both.create_task(asyncio.to_thread(group.join), name="make the update group")
        try:
            yield group
        finally:
            try:
                await self._post("/destroy_weights_update_group", {"group_name": group.name})
            finally:
                group.leave()


class _Group:
    """This side of the process group; the server makes its own in the same way."""

    def __init__(self, address: str, *, world_size: int, backend: str, timeout_s: float) -> None:
        self.name = f"arpo_weights_{uuid4().hex[:8]}"
        """Of its own: this process may have groups with other servers, and one that a dead server left behind."""
        self.world_size = world_size
        self.port = free_port(address)
        self._url = f"tcp://{address}:{self.port}"
        self._backend = backend
        self._timeout_s = timeout_s
        self._group: Any = None

    def join(self) -> None:
        from datetime import timedelta

        import torch.distributed.distributed_c10d as c10d

        timeout = timedelta(seconds=self._timeout_s)
        with boundary(GeneratorError, "the process group for weights"):
            store, rank, size = next(c10d.rendezvous(self._url, 0, self.world_size, timeout=timeout))
            # A group beside the default one, which this process may have or not.
            self._group, _ = c10d._new_process_group_helper(
                size,
                rank,
                [],
                c10d.Backend(self._backend),
                c10d.PrefixStore(self.name, store),
                group_name=c10d.GroupName(self.name),
                timeout=timeout,
            )
            c10d._world.pg_group_ranks[self._group] = {rank: rank for rank in range(size)}

    def broadcast(self, bucket: "list[tuple[str, Tensor]]") -> None:
        import torch
        import torch.distributed as dist

        with boundary(GeneratorError, "broadcasting weights"):
            for _, tensor in bucket:
                on_device = tensor.cuda() if self._backend == "nccl" else tensor
                dist.broadcast(on_device, src=0, group=self._group)
            if self._backend == "nccl":
                torch.cuda.synchronize()

    def leave(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group(self._group)


def _buckets(folder: str) -> "Iterator[tuple[list[tuple[str, Tensor]], bool]]":
    """The tensors of a folder of safetensors, by name, in buckets of about `BUCKET_BYTES`, and whether one is the last.

    One bucket is read at a time. Raises `GeneratorError` for a folder without weights.
    """
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in _tensors(folder):
        num_bytes = tensor.numel() * tensor.element_size()
        if bucket and size + num_bytes > BUCKET_BYTES:
            yield bucket, False
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += num_bytes
    if not bucket:
        raise GeneratorError(f"{folder}: no weights there")
    yield bucket, True


def _tensors(folder: str) -> "Iterator[tuple[str, Tensor]]":
    from safetensors import safe_open

    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping: it has keys and nothing else of one)
                yield name, tensors.get_tensor(name)


def _serialised(bucket: "list[tuple[str, Tensor]]") -> str:
    """As SGLang's `MultiprocessingSerializer` writes them: a pickle of handles; the tensors stay in shared memory."""
    from multiprocessing.reduction import ForkingPickler

    import torch.multiprocessing

    # With file descriptors, the default, the server would have to call this process back, and cannot.
    torch.multiprocessing.set_sharing_strategy("file_system")
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(bucket)
    return base64.b64encode(buffer.getvalue()).decode()


def _address_towards(url: str) -> str:
    """The address by which the server at `url` can reach this machine."""
    host, port = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 80
    with boundary(GeneratorError, url), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing: it only chooses the interface
        return probe.getsockname()[0]
