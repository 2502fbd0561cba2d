"""Training on several processes: each one computes a part of every batch (data parallelism).

`torchrun` starts the processes, PyTorch calls them *ranks* 0..world_size-1, and they exchange
tensors through a process group. Gradients, the statistics of the quantizer and everything that is
logged are sums or means over the ranks, so all ranks hold the same weights; only rank 0 writes
files. Without a process group there is one rank, and the functions return their argument.

`training.fit` averages gradients itself, after the backward pass. `DistributedDataParallel` would
overlap this with the backward pass, but it needs the loss to be computed by the model's `forward`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[None]:
    """Context in which the processes that torchrun has started are connected: by NCCL for tensors
    on GPUs, one GPU each, and by gloo for tensors on the CPU. Only rank 0 prints to stdout. A
    process that torchrun has not started stays alone.

    Raises:
        ValueError: there are GPUs, but fewer than processes.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"--nproc-per-node is larger than the number of GPUs, {gpus}: start one process "
                'per GPU, or set CUDA_VISIBLE_DEVICES="" to train on the CPU'
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    # While rank 0 prepares the images, which may take hours, the others wait.
    dist.init_process_group(backend, timeout=timedelta(days=1))
    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere) if rank() else nullcontext(),
        ):
            yield
    finally:
        dist.destroy_process_group()


def _is_connected() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0..world_size()-1."""
    return dist.get_rank() if _is_connected() else 0


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if _is_connected() else 1


def shard(batch: Tensor, batch_size: int) -> Tensor:
    """This rank's part of a training batch: all parts have the same size, so that the mean over the
    ranks is the mean over the batch. The last batch of an epoch may not be divisible; its first
    elements are then repeated, as PyTorch's DistributedSampler does.

    Args:
        batch: (n, ...) with 1 <= n <= batch_size, the same on all ranks.

    Raises:
        ValueError: batch_size is not divisible by the number of ranks.
    """
    if batch_size % world_size():
        raise ValueError(
            f"batches of {batch_size} can't be divided evenly among {world_size()} processes: use "
            "another number of processes, or a recipe with another batch_size"
        )
    size = -(-len(batch) // world_size())
    return batch[torch.arange(rank() * size, (rank() + 1) * size) % len(batch)]


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over the ranks, in place; returns the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in one transfer."""
    if world_size() > 1:
        means = reduce_sum(torch.cat([t.flatten() for t in tensors])) / world_size()
        for tensor, mean in zip(tensors, means.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


@torch.no_grad()
def from_rank_0(tensor: Tensor) -> Tensor:
    """Replace the tensor by that of rank 0, in place; returns it."""
    if world_size() > 1:
        sent = tensor.contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)
    return tensor


def concatenate(tensor: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all ranks, of the same shape, concatenated in the order of the ranks."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts, dim)


def map_parts(function: Callable[[Tensor], T], indices: Tensor) -> list[T]:
    """Values of a function for the parts of a held-out split, (n, ...); each rank computes one.

    No element is repeated, and the sizes of the parts may differ by one. Tensors in the values must
    be on the CPU.
    """
    values = [function(indices.tensor_split(world_size())[rank()])]
    if world_size() > 1:
        (own,), values = values, [None] * world_size()
        dist.all_gather_object(values, own)
    return values


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on at least one rank: a decision that all ranks share."""
    return bool(reduce_sum(torch.tensor(int(condition))))


def barrier() -> None:
    """Wait until all ranks have come here."""
    any_rank(False)


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Context that rank 0 passes alone, and the others afterwards: rank 0 fills a cache on disk,
    which the others then find."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()
