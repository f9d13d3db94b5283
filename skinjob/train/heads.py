"""Heads of several runs, trained side by side as one stack of tensors.

R heads are updated by the same few operations on tensors with a first dimension of R. Each head
has its own batch, so its own order of images. No operation mixes heads: a head has the same bits in
a stack of any size, which a test checks for the kernels of the CPU at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RHO, EPS = 0.9, 1e-6
"""Adadelta's constants, as in torch.optim.Adadelta."""

MINUS_ONE = torch.tensor(-1.0)

ALIGNED = 16
"""Numbers per head are a multiple of this, so that each head begins at a multiple of 64 bytes."""

MOST_INPUT_BYTES = 2 << 20
"""The inputs of an update of a stack. They are read twice, so they should fit the cache of a core.
`tests/benchmarks/heads.py --own` compares sizes."""


class Heads:
    """The heads of R runs with the same batch size, and Adadelta's averages.

    The update is that of torch.optim.Adadelta, which would import torch._dynamo.
    """

    device = "cpu"
    stream: torch.cuda.Stream | None = None
    batch_size = 4096

    def __init__(self, states: Sequence[Mapping[str, Any]], lrs: Sequence[float]) -> None:
        """Copies the numbers of R states (see `new_state`); *lrs* are the learning rates."""
        self.updates = int(states[0]["updates"])
        self._shape = torch.Size((len(states), *states[0]["head"]["weight"].shape))  # R, C, F
        num_heads, num_classes, num_features = self._shape
        size = -(-num_classes * (num_features + 1) // ALIGNED) * ALIGNED
        self._lrs = torch.tensor(lrs, dtype=torch.float32).unsqueeze(1)  # (R, 1)
        # parameters, averages of squared gradients, averages of squared changes
        self._numbers = torch.zeros(3, num_heads, size)
        self._gradients = torch.zeros(num_heads, size)
        self._views = [self._parts(numbers) for numbers in self._numbers]
        self._gradient_views = self._parts(self._gradients)
        for kind, parts in enumerate(self._views):
            for part, view in enumerate(parts):
                view.copy_(torch.stack([_tensors(state)[kind][part] for state in states]))

    def update(self, features: Tensor, targets: Tensor, share: float) -> Tensor:
        """Updates each head by its batch; returns the logits before, (R, B, num_classes).

        *features* (R * B, num_features), *targets* (R, B) int64; *share* of the learning rate.
        """
        num_heads, _, num_features = self._shape
        inputs = features.view(num_heads, -1, num_features)  # (R, B, F)
        logits = self._logits(inputs)  # (R, C, B)
        errors = logits.softmax(dim=1)  # (R, C, B), the gradient by the logits
        ones = MINUS_ONE.expand(num_heads, 1, inputs.shape[1])
        errors.scatter_add_(1, targets.unsqueeze(1), ones).div_(inputs.shape[1])
        weight, bias = self._gradient_views
        torch.bmm(errors, inputs, out=weight)
        torch.sum(errors, dim=2, out=bias)
        self._adadelta(share)
        self.updates += 1
        return logits.mT

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits of each head, (R, B, num_classes), of (B, num_features)."""
        return self._logits(features.expand(self._shape[0], -1, -1)).mT

    def states(self) -> list[dict[str, Any]]:
        """Returns the state of each head."""
        return [
            _state(
                self.updates, [[part[index].clone() for part in kind] for kind in self._views], lr
            )
            for index, lr in enumerate(self._lrs.flatten().tolist())
        ]

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Returns views of (R, size) as weights, (R, C, F), and biases, (R, C)."""
        num_heads, num_classes, num_features = self._shape
        end = num_classes * num_features
        weight = numbers[:, :end].view(num_heads, num_classes, num_features)
        return weight, numbers[:, end : end + num_classes]

    def _logits(self, inputs: Tensor) -> Tensor:
        """Returns (R, num_classes, B) of (R, B, num_features)."""
        weight, bias = self._views[0]
        num_images = inputs.shape[1]
        if num_images == 1:  # a lone vector takes other kernels in a stack than outside
            inputs = inputs.expand(-1, 2, -1)
        return torch.baddbmm(bias.unsqueeze(2), weight, inputs.mT)[:, :, :num_images]

    def _adadelta(self, share: float) -> None:
        gradients, (parameters, squares, changes) = self._gradients, self._numbers
        squares.mul_(RHO).addcmul_(gradients, gradients, value=1 - RHO)
        change = (changes + EPS).sqrt_().div_((squares + EPS).sqrt_()).mul_(gradients)
        changes.mul_(RHO).addcmul_(change, change, value=1 - RHO)
        parameters.addcmul_(change, self._lrs, value=-share)


def new_state(head: nn.Linear, lr: float) -> dict[str, Any]:
    """Returns the state of a head before its first update.

    The state of a head is laid out as torch's state_dict of nn.Linear and of Adadelta.
    """
    parameters = [head.weight.detach(), head.bias.detach()]
    zeros = [torch.zeros_like(parameter) for parameter in parameters]
    return _state(0, [parameters, zeros, zeros], lr)


def _state(updates: int, kinds: Sequence[Sequence[Tensor]], lr: float) -> dict[str, Any]:
    (weight, bias), squares, changes = kinds
    step = torch.tensor(float(updates))
    averages = {
        number: {"step": step, "square_avg": square, "acc_delta": change}
        for number, (square, change) in enumerate(zip(squares, changes, strict=True))
    }
    group = {
        "lr": lr,
        "rho": RHO,
        "eps": EPS,
        "weight_decay": 0,
        **dict.fromkeys(("maximize", "capturable", "differentiable"), False),
        "foreach": None,
        "params": [0, 1],
    }
    return {
        "updates": updates,
        "head": {"weight": weight, "bias": bias},
        "optimizer": {"state": averages, "param_groups": [group]},
    }


def _tensors(state: Mapping[str, Any]) -> list[list[Tensor]]:
    """Returns parameters and both averages of a head, each as [weight, bias]."""
    averages = [state["optimizer"]["state"][part] for part in (0, 1)]
    return [
        [state["head"]["weight"], state["head"]["bias"]],
        [average["square_avg"] for average in averages],
        [average["acc_delta"] for average in averages],
    ]
