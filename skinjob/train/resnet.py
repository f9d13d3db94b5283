"""ResNets, with the names, shapes and numbers of torchvision's.

torchvision is not imported, because it brings `torch._dynamo` along: 2 s before the first image.

Source: He et al., "Deep Residual Learning for Image Recognition" (2016).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """(B, 3, S, S) -> (B, num_classes); *num_blocks* are those of each stage."""

    def __init__(
        self,
        num_blocks: tuple[int, int, int, int],
        num_classes: int,
        *,
        has_bottlenecks: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            blocks = nn.Sequential()
            for number in range(num_blocks[stage]):
                stride = 2 if stage and not number else 1
                blocks.append(Block(inputs, width, stride, has_bottlenecks))
                inputs = 4 * width if has_bottlenecks else width
            setattr(self, f"layer{stage + 1}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(inputs, num_classes)

    @property
    def blocks(self) -> list[Block]:
        stages = (self.get_submodule(f"layer{stage + 1}") for stage in range(len(WIDTHS)))
        return [block for stage in stages for block in stage.children()]  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(functional.relu_(self.bn1(self.conv1(images))))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


class Block(nn.Module):
    """Two convolutions of 3 x 3, or one between two of 1 x 1, and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int, is_bottleneck: bool) -> None:
        super().__init__()
        if is_bottleneck:
            outputs = 4 * width
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            outputs = width
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        for number, (i, o, kernel, step) in enumerate(shapes, 1):
            layer = nn.Conv2d(i, o, kernel, step, padding=kernel // 2, bias=False)
            setattr(self, f"conv{number}", layer)
            setattr(self, f"bn{number}", nn.BatchNorm2d(o))
        self.num_convolutions = len(shapes)
        self.downsample: nn.Sequential | None = None
        if inputs != outputs:
            short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(outputs))

    @property
    def convolutions(self) -> list[nn.Module]:
        return [self.get_submodule(f"conv{n + 1}") for n in range(self.num_convolutions)]

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number, convolution in enumerate(self.convolutions, 1):
            x = self.get_submodule(f"bn{number}")(convolution(x))
            if number < self.num_convolutions:
                x = functional.relu_(x)
        return functional.relu_(x.add_(shortcut))
