"""The forward pass: torchvision's numbers in every way to compute it, and why one was chosen."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import import_path
from torch import Tensor, nn
from torchvision.models import resnet18
from trees import make_sweep, make_tree

from skinjob.train import forward as forward_module
from skinjob.train.device import DTYPES, choose_device
from skinjob.train.forward import (
    CudnnResNet,
    OneDnnResNet,
    choose_forward,
    noise,
    relative_error,
    try_bf16,
)
from skinjob.train.model import build_backbone, shapes_of
from skinjob.train.resnet import ResNet
from skinjob.weights.backbones import DEFAULT


@pytest.fixture
def backbone(weights: Path) -> ResNet:
    found = build_backbone(DEFAULT, weights)
    assert isinstance(found, ResNet)
    return found


@pytest.mark.parametrize("is_training", [False, True])
def test_the_network_is_torchvisions(is_training: bool) -> None:
    """Names, shapes, order and logits, so a trained file can be put on torchvision's ResNet18."""
    torch.manual_seed(0)
    theirs = resnet18(num_classes=5)
    for buffer in filter(torch.is_floating_point, theirs.buffers()):
        buffer.add_(torch.rand(()))  # not the values that a new batch norm has
    ours = shapes_of(DEFAULT, num_classes=5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [
        name for name, _ in theirs.named_parameters()
    ]
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state, assign=True)
    images = noise(3, 97)
    found, wanted = ours.train(is_training)(images), theirs.train(is_training)(images)
    assert torch.equal(found, wanted)
    for (_, ours_buffer), (_, their_buffer) in zip(
        ours.named_buffers(), theirs.named_buffers(), strict=True
    ):
        assert torch.equal(ours_buffer, their_buffer)


@pytest.mark.parametrize("side", [224, 48])
@pytest.mark.parametrize("precision", DTYPES)
def test_fused_convolutions_give_the_plain_features(
    backbone: ResNet, precision: str, side: int
) -> None:
    """A CPU's fused network is held to the plain one, in each precision, for any batch."""
    backbone.to(DTYPES[precision])
    try:
        fused = OneDnnResNet(backbone)
    except RuntimeError as error:
        pytest.skip(f"this CPU has no such convolution: {error}")
    hold_together(fused, backbone, precision, side)


def hold_together(fused: Any, backbone: ResNet, precision: str, side: int) -> None:
    for size in (3, 1):
        images = noise(size, side).to(DTYPES[precision])
        before = images.clone()
        with torch.inference_mode():
            found, wanted = fused(images), backbone(images)
        assert found.shape == (size, DEFAULT.num_features)
        assert relative_error(found, wanted) < {"fp32": 1e-6, "fp16": 2e-3, "bf16": 1e-2}[precision]
        assert torch.equal(images, before)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, *how: Any) -> Tensor:
    return torch.conv2d(x, weight, bias, *how).relu_()


def conv_add_relu(
    x: Tensor, weight: Tensor, shortcut: Tensor, alpha: float, bias: Tensor, *how: Any
) -> Tensor:
    return torch.conv2d(x, weight, bias, *how).add_(shortcut, alpha=alpha).relu_()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_gpus_fused_convolutions_give_the_plain_features(
    backbone: ResNet, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, only cuDNN's two calls are replaced, by what they compute."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch, "cudnn_convolution_relu", conv_relu)
        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", conv_add_relu)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    backbone.to(kind, DTYPES[precision])
    hold_together(CudnnResNet(backbone), backbone, precision, side=64)


def test_features_are_float32_of_fused_convolutions(
    backbone: ResNet, caplog: pytest.LogCaptureFixture
) -> None:
    """A job on a CPU takes the fused network and says so."""
    caplog.set_level("INFO", "skinjob")
    forward = choose_forward(backbone, choose_device("cpu", "fp32"))
    assert isinstance(forward.network, OneDnnResNet)
    assert "backbone: channels_last, batch norm folded, convolutions fused" in caplog.text
    with torch.inference_mode():
        assert forward(noise(2, 64)).dtype == torch.float32


def test_without_fused_convolutions_the_plain_network_is_used(
    backbone: ResNet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A torch that lacks them, or computes something else with them, trains all the same."""
    caplog.set_level("INFO", "skinjob")
    device = choose_device("cpu", "fp32")
    with monkeypatch.context() as patch:
        patch.setattr(OneDnnResNet, "conv_relu", lambda self, layer, x: layer(x).relu_().mul_(1.1))
        assert choose_forward(backbone, device).network is backbone
    assert "not fused (features would differ by " in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(OneDnnResNet, "__call__", lambda self, x: torch.full((2, 512), math.nan))
        assert choose_forward(backbone, device).network is backbone
    with monkeypatch.context() as patch:
        patch.setattr(forward_module, "_packed", lambda layer: torch.ops.mkldnn.no_such_call)
        assert choose_forward(backbone, device).network is backbone
    assert "no_such_call" in caplog.text
    other = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert choose_forward(other, device).network is other


@pytest.mark.parametrize(
    ("seconds", "error", "serves"),
    [
        ({"fp32": 0.30, "bf16": 0.10}, 0.0, True),
        ({"fp32": 0.30, "bf16": 0.29}, 0.0, False),
        ({"fp32": 0.30, "bf16": 0.50}, 0.0, False),
        ({"fp32": 0.30, "bf16": 0.10}, 0.2, False),
        ({"fp32": 0.30, "bf16": 0.10}, math.nan, False),
    ],
)
def test_bf16_must_be_faster_and_agree(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], error: float, serves: bool
) -> None:
    """auto takes bf16 on a CPU only where a batch of the backbone gains, and features stay."""
    names = {dtype: name for name, dtype in DTYPES.items()}

    def fastest(backbone: nn.Module, kind: str, precision: str) -> Any:
        factor = 1 + error if precision == "bf16" else 1
        return lambda images: images.flatten(1) * factor, ""

    monkeypatch.setattr(forward_module, "_fastest", fastest)
    monkeypatch.setattr(forward_module, "_cpu_s", lambda f, images: seconds[names[f.dtype]])
    found, words = try_bf16(nn.Flatten(), side=8)
    assert found == serves
    assert f"bf16 is {seconds['fp32'] / seconds['bf16']:.1f} times as fast" in words


def test_auto_on_a_cpu_asks_for_a_trial_where_there_are_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AMX or avx512_bf16 is tried; without either, fp32 costs no trial. The reason is told."""
    for has_amx, has_avx in ((True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has_amx: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has_avx: has)
        device = choose_device("cpu", "auto", try_bf16=lambda: (True, "it is 3.1 times as fast"))
        assert (device.precision, device.precision_reason) == (
            "bf16",
            "auto: it is 3.1 times as fast",
        )
        device = choose_device("cpu", "auto", try_bf16=lambda: (False, "it is slower"))
        assert (device.precision, device.precision_reason) == ("fp32", "auto: it is slower")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    device = choose_device("cpu", "auto", try_bf16=lambda: pytest.fail("tried"))
    assert (device.precision, device.precision_reason) == (
        "fp32",
        "auto: this CPU has no bf16 units",
    )


@pytest.mark.parametrize(
    ("name", "capability", "head", "all_layers"),
    [
        ("P100", (6, 0), "fp32", "fp32"),
        ("V100", (7, 0), "fp16", "fp32"),
        ("T4", (7, 5), "fp16", "fp32"),
        ("A100", (8, 0), "fp16", "bf16"),
        ("H200", (9, 0), "fp16", "bf16"),
    ],
)
def test_auto_takes_what_a_gpu_is_fast_in(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: tuple[int, int],
    head: str,
    all_layers: str,
) -> None:
    """Frozen features need no gradients, so fp16 serves there; all layers need bf16's range."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: capability >= (8, 0))
    for trained, precision in (("head", head), ("all", all_layers)):
        device = choose_device("cuda", "auto", trained=trained)
        assert device.precision == precision, name
        assert device.precision_reason.startswith("auto: this GPU ")
    other = choose_device("cuda", "auto", keeps_fp16=False)
    assert other.precision == "fp32", "fp16 might overflow"
    assert choose_device("cuda", "fp32").precision_reason == "asked for"


FIRST_IMAGE = """
import sys
from pathlib import Path
from torch import nn
from skinjob.train.job import run_job
loaded = []
def note(*_):
    loaded.append([m for m in ("torch._dynamo", "torchvision", "sympy") if m in sys.modules])
nn.modules.module.register_module_forward_hook(note)
run_job([Path(sys.argv[1])])
print("LOADED", *loaded[0])
"""


@pytest.mark.parametrize(
    ("train", "precision"),
    [("head", "auto"), ("all", "fp32")],
)
def test_a_job_imports_no_compiler_before_its_first_image(
    weights: Path, tmp_path: Path, train: str, precision: str
) -> None:
    """Nothing needs the 823 modules of torch._dynamo; torchvision and optimizers import it."""
    data = make_tree(tmp_path / "skin_cancer", num_train=2, num_test=1)
    made = make_sweep(
        data, weights, tmp_path / "runs", batch_sizes=[4], epochs=1, train=train,
        precision=precision,
    )  # fmt: skip
    (run,) = made.runs()
    output = subprocess.run(
        [sys.executable, "-c", FIRST_IMAGE, run.folder],
        env=os.environ | import_path(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split("LOADED")[1].split() == []
