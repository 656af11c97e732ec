"""Several processes, one training run: each draws its share of every batch, and their gradients become one.

    torchrun --nproc-per-node 4 -m diffugts fit --model maisi-ct-rflow …

Alone, nothing here costs anything. The losses are written so that the mean over workers is the loss of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """This process among those of the run.

    Attributes:
        rank: 0 is the one that writes. count: of processes. local: this one's number on its machine, for its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def join(cls) -> Workers:
        """Meet the other processes that torchrun started; alone where it did not."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            torch.cuda.set_device(local)  # before NCCL starts, which talks from the current device
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), count, local)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes of a value that no gradient flows through."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the mean of all gradients, in one message."""
        if self.count == 1:
            return
        found = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in found]
        flat = torch.cat([grad.reshape(-1).float() for grad in grads])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.count, [grad.numel() for grad in grads])
        for parameter, grad, part in zip(found, grads, parts, strict=True):
            parameter.grad = part.view(grad.shape).to(grad.dtype)

    def gather(self, x: Tensor) -> Tensor:
        """(N, ·) of every process, one after another; gradients find their way back."""
        if self.count == 1:
            return x
        result: Tensor = _Gather.apply(x, self)  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        return result


class _Gather(torch.autograd.Function):
    """All processes compute the same from what is gathered, so each one's share of the gradient is theirs, summed."""

    @staticmethod
    def forward(ctx, x: Tensor, workers: Workers) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.workers, ctx.share = workers, len(x)
        parts = [torch.empty_like(x) for _ in range(workers.count)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        start = ctx.workers.rank * ctx.share
        return total[start : start + ctx.share], None
