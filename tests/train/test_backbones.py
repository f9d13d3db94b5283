"""Each row of the table of networks is torchvision's, and each network trains."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import skinjob
from local_server import Site, serving
from numpy.typing import NDArray
from safetensors.torch import load_file
from state_dict_maker import write_old_layout
from torch import Tensor, nn
from torchvision import models
from trees import make_sweep, make_tree

from skinjob.config import ARCHS
from skinjob.data.images import Split, read_index
from skinjob.sweeps.layout import Run, sweeps
from skinjob.train import model as model_module
from skinjob.train.forward import OneDnnResNet, noise, relative_error
from skinjob.train.images import ImageSource, View
from skinjob.train.job import run_job
from skinjob.train.model import RESNETS, build_backbone
from skinjob.weights.backbones import BACKBONES, Backbone, backbone_with
from skinjob.weights.file import write_weights
from skinjob.weights.statedict import MAX_FILE_BYTES, MAX_NUMBERS
from skinjob.weights.tensors import COUNTER

every_network = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=list(BACKBONES))


def torchvisions(backbone: Backbone, num_classes: int = 1000) -> nn.Module:
    """Returns torchvision's network, without memory for its numbers."""
    with torch.device("meta"):
        return models.get_model(backbone.name, num_classes=num_classes)


@every_network
def test_a_row_of_the_table_is_torchvisions(backbone: Backbone) -> None:
    """URL, digest, size, preprocessing, head and every tensor are those of torchvision."""
    published = models.get_model_weights(backbone.name)["IMAGENET1K_V1"]
    assert backbone.url == published.url
    assert f"-{backbone.sha256[:8]}.pth" in backbone.url
    assert len(backbone.sha256) == 64
    assert round(backbone.size_bytes / 2**20, 3) == published.meta["_file_size"]
    preset, ours = published.transforms(), backbone.preprocessing
    assert ([ours.resize], [ours.crop]) == (preset.resize_size, preset.crop_size)
    assert (list(ours.mean), list(ours.std)) == (preset.mean, preset.std)
    assert ours.interpolation == preset.interpolation.value
    assert backbone.is_crop_fixed == (published.meta["min_size"] == (ours.crop, ours.crop))

    theirs = torchvisions(backbone)
    tensors = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in theirs.state_dict().items()
    }
    assert list(tensors.items()) == list(backbone.tensors.items())
    assert (
        sum(parameter.numel() for parameter in theirs.parameters())
        == (published.meta["num_params"])
    )
    layers = [(name, m) for name, m in theirs.named_modules() if not list(m.children())]
    name, head = layers[-1]
    assert name == backbone.head
    assert (head.in_features, head.out_features) == (backbone.num_features, backbone.num_classes)


def test_the_table_has_every_network_that_an_option_takes() -> None:
    """--arch takes the networks of the table, and the published files are not too large to read."""
    assert tuple(BACKBONES) == ARCHS
    assert {n for n, backbone in BACKBONES.items() if not backbone.needs_torchvision} == {*RESNETS}
    for backbone in BACKBONES.values():
        assert backbone.size_bytes < MAX_FILE_BYTES
        assert 2 * backbone.num_bytes / 4 < MAX_NUMBERS
        assert backbone_with([n for n in backbone.tensors if not n.endswith(COUNTER)]) == backbone


def test_old_names_become_those_of_today() -> None:
    """The published ViT has names that torchvision renames as it loads; a fetch renames them."""
    vit = BACKBONES["vit_b_16"]
    theirs = torchvisions(vit)
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert not old.keys() >= vit.tensors.keys()
    assert [vit.today(name) for name in old] == list(vit.tensors)
    theirs.load_state_dict(old, strict=True, assign=True)  # torchvision takes them for its own


def drawn_state(backbone: Backbone) -> dict[str, Tensor]:
    """Returns random numbers of a size at which no layer's output vanishes, without counters."""
    draws, state = torch.Generator().manual_seed(0), {}
    for name, (_, shape) in backbone.tensors.items():
        if len(shape) == 1:
            around = 1.0 if name.endswith(("weight", "running_var")) else 0.0
            state[name] = around + 0.1 * torch.rand(shape, generator=draws)
        elif shape:
            fan_in = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=draws) * (2 / fan_in) ** 0.5
    return state


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "resnet18"])
def test_features_are_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its last layer replaced and its batch norm folded, a network gives the same features."""
    backbone = BACKBONES[name]
    state = drawn_state(backbone)
    monkeypatch.setattr(model_module, "load_file", lambda path: dict(state))
    ours = build_backbone(backbone, Path("a file"))
    theirs = torchvisions(backbone)
    counters = {n: torch.zeros((), dtype=torch.int64) for n in backbone.body if n.endswith(COUNTER)}
    theirs.load_state_dict(state | counters, assign=True)
    theirs.set_submodule(backbone.head, nn.Identity())
    side = backbone.preprocessing.crop if backbone.is_crop_fixed else 64
    images = noise(2, side)
    with torch.inference_mode():
        wanted = theirs.eval()(images)
        assert wanted.shape == (2, backbone.num_features)
        assert wanted.std() > 0.01
        assert relative_error(ours(images), wanted) < 1e-5
        if name in RESNETS:
            assert relative_error(OneDnnResNet(ours)(images), wanted) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_training_draws_no_dropout(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In train mode, logits are the same each time, so a resumed run gives the same bytes."""
    backbone = BACKBONES[name]
    state = drawn_state(backbone)
    monkeypatch.setattr(model_module, "load_file", lambda path: dict(state))
    network = model_module.build_model(backbone, Path("a file")).train()
    images = noise(2, 64)
    with torch.no_grad():
        first = network(images)
        assert torch.equal(network(images), first)


def test_another_network_is_fetched_trained_and_reported(tmp_path: Path) -> None:
    """From a mirror to a report with --arch; the head fits torchvision's network."""
    backbone = BACKBONES["efficientnet_b0"]
    make_tree(tmp_path / "skin_cancer", num_train=2, num_test=2)
    content = write_old_layout(tmp_path / "made.pth", drawn_arrays(backbone)).read_bytes()
    name = f"made-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    with serving(Site(files={f"/{name}": content})) as site:
        words = ("--arch", backbone.name, "--source", f"{site.base}/{name}")
        fetched = skinjob("fetch-weights", *words, cwd=tmp_path, code=0).stdout
    assert "weights/efficientnet_b0.safetensors written\n" in fetched
    words = ("--arch", backbone.name, "--batch-sizes", "4", "--epochs", "1", "--precision", "fp32")
    skinjob("submit", *words, "--cluster", "local", "--wait", cwd=tmp_path, code=0)
    skinjob("report", cwd=tmp_path, code=0)
    (sweep,) = sweeps(tmp_path / "runs")
    assert "-efficientnet_b0-bs4-" in sweep.name
    assert sweep.info().weights.architecture == backbone.name
    require_same_predictions(sweep.runs()[0], backbone, "head")


def test_all_layers_of_another_network_train(tmp_path: Path) -> None:
    """With --train all, model.safetensors is torchvision's EfficientNet-B0."""
    backbone = BACKBONES["efficientnet_b0"]
    small = replace(backbone, preprocessing=replace(backbone.preprocessing, resize=32, crop=32))
    weights = tmp_path / "made.safetensors"
    write_weights(weights, drawn_arrays(backbone), small, source="drawn", kind="untrained")
    data = make_tree(tmp_path / "skin_cancer", num_train=4, num_test=2)
    (run,) = make_sweep(
        data, weights, tmp_path / "runs", batch_sizes=[4], epochs=1, lrs=[0.0003], train="all"
    ).runs()
    run_job([run.folder])
    require_same_predictions(run, small, "model")


def drawn_arrays(backbone: Backbone) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy() for name, tensor in drawn_state(backbone).items()}


def require_same_predictions(run: Run, backbone: Backbone, part: str) -> None:
    """Checks predictions.csv against torchvision's network with what the run has trained."""
    model = models.get_model(backbone.name, num_classes=2)
    state = load_file(run.config().weights) | load_file(run.trained_file(part))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith(COUNTER) for name in missing)
    data = Path(run.config().data)
    images = read_index(run.sweep.images_file, data, ("benign", "malignant"))
    source = ImageSource(images, 0, run.folder, backbone.preprocessing)
    with torch.no_grad():
        batch = source.batch(View(Split.TEST), range(len(images.split("test"))), "cpu")
        p = model.eval()(batch).softmax(1)[:, 1]
    with run.predictions_file.open(newline="") as lines:
        saved = [float(row["p_malignant"]) for row in csv.DictReader(lines)]
    assert p.tolist() == pytest.approx(saved, abs=1e-4)
    assert len(set(saved)) > 1
