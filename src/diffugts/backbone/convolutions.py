"""Convolutions that stay quick for one small volume on a CPU."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it without annotations


class QuickConv3d(nn.Conv3d):
    """``nn.Conv3d`` that always takes oneDNN where one volume is read on a CPU.

    PyTorch hands a batch of one with C · D · H up to 20,480 to a kernel of its own; with it a step of the flow took
    twice as long (``benchmarks/backbone.py``). The two differ by rounding.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._passed_over(input):
            usual: Tensor = super()._conv_forward(input, weight, bias)
            return usual
        sizes = (list(size) for size in (self.padding, self.stride, self.dilation))
        out: Tensor = torch.ops.aten.mkldnn_convolution(input, weight, bias, *sizes, self.groups)
        return out

    def _passed_over(self, x: Tensor) -> bool:
        read = not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
        single = x.dim() == 5 and len(x) == 1 and x.device.type == "cpu"
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return read and single and plain and x.dtype == self.weight.dtype == torch.float32 and ONEDNN


def laid_out(module: M) -> M:
    """A network with its weights in the layout, and its convolutions of the kind, that a CPU is quickest with."""
    for part in module.modules():
        if type(part) is nn.Conv3d:
            part.__class__ = QuickConv3d
    module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub lacks it
    return module
