"""ResNets of basic blocks, with the names, shapes and numbers of torchvision's.

torchvision is not imported, because it brings `torch._dynamo` along: 2 s before the first image.

Source: He et al., "Deep Residual Learning for Image Recognition" (2016).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """(B, 3, S, S) -> (B, num_classes); *num_blocks* are those of each stage."""

    def __init__(self, num_blocks: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            first = BasicBlock(inputs, width, stride=2 if stage else 1)
            more = (BasicBlock(width, width, stride=1) for _ in range(1, num_blocks[stage]))
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *more))
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(inputs, num_classes)

    @property
    def blocks(self) -> list[BasicBlock]:
        stages = (self.get_submodule(f"layer{stage + 1}") for stage in range(len(WIDTHS)))
        return [block for stage in stages for block in stage.children()]  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(functional.relu_(self.bn1(self.conv1(images))))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3, and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if inputs != width:
            short = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu_(self.bn1(self.conv1(x)))
        return functional.relu_(self.bn2(self.conv2(x)).add_(shortcut))
