"""A network of which all layers are trained, with AdamW; on a GPU each update is a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from skinjob.config import TrainConfig
from skinjob.train.device import Device
from skinjob.train.model import build_head, build_model
from skinjob.weights.backbones import Backbone

BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01
"""AdamW's constants, as in torch.optim.AdamW."""

IMAGES_AT_ONCE = 128
MOST_AT_ONCE = 4
"""A GPU is busy with so many images on so many streams. `tests/benchmarks/gpu.py` measures whether
that is so; it has not been run on a GPU."""


def num_at_once(device: Device, batch_size: int) -> int:
    """Returns how many runs train at the same time, each on a stream of the GPU."""
    if device.type != "cuda":
        return 1
    return max(1, min(MOST_AT_ONCE, IMAGES_AT_ONCE // batch_size))


class AllLayers:
    """A network in training, and AdamW's averages.

    The updates of pretrained layers should not depend on the size of their gradients, hence AdamW.
    Batch norm is in train mode, as usual in fine-tuning, because the images differ from ImageNet's.
    So the batch size also has an effect through batch norm.

    The update is that of torch.optim.AdamW with fused=True, which would import torch._dynamo.
    """

    batch_size = 64
    """Inputs per forward pass in an evaluation."""

    def __init__(
        self,
        config: TrainConfig,
        backbone: Backbone,
        weights: Path,
        num_classes: int,
        device: Device,
        side: int,
    ) -> None:
        """Builds the network that *config* trains. On a GPU, captures its update of a whole batch.

        *side* is the side of its images in pixels.
        """
        torch.backends.cudnn.deterministic = True  # a resumed run gives the same bytes
        # As do the sums of attention, but not those of its faster kernels.
        for enable_fast in (
            torch.backends.cuda.enable_flash_sdp,
            torch.backends.cuda.enable_mem_efficient_sdp,
            torch.backends.cuda.enable_cudnn_sdp,
        ):
            enable_fast(False)
        model = build_model(backbone, weights)
        head = build_head(backbone.num_features, num_classes, config.seed)
        model.set_submodule(backbone.head, head)
        self.device = device.type
        self.updates = 0
        self._module = model.to(device.type).to(memory_format=torch.channels_last).train()
        self._is_mixed = device.precision == "bf16"  # the layers; the weights stay float32
        self._config_lr = config.lr
        self._lr = torch.tensor(config.lr, device=device.type)
        self._parameters: list[Tensor] = list(self._module.parameters())
        self._averages = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self._squares = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self._steps = [torch.zeros((), device=device.type) for _ in self._parameters]
        self._replay: Callable[[], object] | None = None
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self._capture(torch.Size((config.batch_size, 3, side, side)))
            torch.cuda.current_stream().wait_stream(self.stream)

    def update(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        """Updates all layers by a batch; returns the logits before, (1, B, num_classes).

        *images* (B, 3, S, S), *targets* (1, B) int64; *share* of the learning rate.
        """
        self._lr.fill_(self._config_lr * share)
        self.updates += 1
        if self._replay is None or len(images) != len(self._images):
            return self._update(images, targets[0]).unsqueeze(0)
        self._images.copy_(images)
        self._targets.copy_(targets[0])
        self._replay()
        return self._captured_logits.clone().unsqueeze(0)

    def _update(self, images: Tensor, targets: Tensor) -> Tensor:
        """Updates all layers; returns the logits, (B, num_classes). All of it can be captured."""
        logits = self._forward(images)
        for parameter in self._parameters:
            parameter.grad = None
        functional.cross_entropy(logits, targets).backward()
        gradients = [
            p.grad for p in self._parameters if p.grad is not None
        ]  # strided as the parameters
        torch._foreach_add_(self._steps, 1)
        with torch.no_grad():
            torch._fused_adamw_(
                self._parameters,
                gradients,
                self._averages,
                self._squares,
                [],
                self._steps,
                lr=self._lr,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=WEIGHT_DECAY,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )
        return logits.detach()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits in evaluation, (1, B, num_classes)."""
        self._module.eval()
        logits = self._forward(images).unsqueeze(0)
        self._module.train()
        return logits

    def states(self) -> list[dict[str, Any]]:
        """Returns what `restore` needs, laid out as state_dict of the module and of AdamW."""
        averages = {
            number: {"step": step.clone(), "exp_avg": average.clone(), "exp_avg_sq": square.clone()}
            for number, (step, average, square) in enumerate(
                zip(self._steps, self._averages, self._squares, strict=True)
            )
        }
        group = {
            "lr": self._config_lr,
            "betas": BETAS,
            "eps": EPS,
            "weight_decay": WEIGHT_DECAY,
            **dict.fromkeys(("amsgrad", "maximize", "capturable", "differentiable"), False),
            **dict.fromkeys(("foreach", "fused")),
            "decoupled_weight_decay": True,
            "params": list(range(len(self._parameters))),
        }
        return [
            {
                "updates": self.updates,
                "model": {name: t.clone() for name, t in self._module.state_dict().items()},
                "optimizer": {"state": averages, "param_groups": [group]},
            }
        ]

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Copies a state into the tensors of this network, which a captured graph uses."""
        self.updates = state["updates"]
        self._module.load_state_dict(state["model"])
        for number, saved in state["optimizer"]["state"].items():
            self._steps[number].copy_(saved["step"])
            self._averages[number].copy_(saved["exp_avg"])
            self._squares[number].copy_(saved["exp_avg_sq"])

    def _forward(self, images: Tensor) -> Tensor:
        """Returns the logits, (B, num_classes) float32."""
        # A cache of weights in bf16 would be of the time of the capture.
        with torch.autocast(
            self.device, torch.bfloat16, enabled=self._is_mixed, cache_enabled=False
        ):
            logits: Tensor = self._module(images)
        return logits.float()

    def _capture(self, shape: torch.Size) -> None:
        """Captures the update of a batch of images, and leaves the network as it was."""
        self._images = torch.zeros(shape, device=self.device).contiguous(
            memory_format=torch.channels_last
        )
        self._targets = torch.zeros(shape[0], dtype=torch.int64, device=self.device)
        (before,) = self.states()

        def update() -> None:
            self._captured_logits = self._update(self._images, self._targets)

        self._replay = capture(update)
        self.restore(before)


def capture(update: Callable[[], None]) -> Callable[[], object]:
    """Returns what repeats the kernels of *update* on the GPU; calls it four times.

    The first three choose kernels and allocate memory, on the stream that captures the fourth.
    """
    for _ in range(3):
        update()
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile.
    stream, mode = torch.cuda.current_stream(), "thread_local"
    with torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
        update()
    return graph.replay
