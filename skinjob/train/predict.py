"""What a trained run says about other images: `skinjob predict`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skinjob.console import printable
from skinjob.data.images import ImageFile, ImageSet, Split, decode, explain
from skinjob.data.store import FolderStore, quoted
from skinjob.errors import ImagesError
from skinjob.files import absolute
from skinjob.train.images import ImageSource, View
from skinjob.train.model import build_backbone, fold_batch_norm, shapes_of
from skinjob.weights.backbones import Backbone
from skinjob.weights.file import read_backbone

AT_ONCE = 32  # images in a forward pass


@torch.inference_mode()
def probabilities(
    trained: Path, weights: Path, files: Sequence[Path], classes: Sequence[str]
) -> Tensor:
    """Returns the probability of each class for each image, (num_images, num_classes) float32.

    *trained* is a run's head.safetensors or model.safetensors, *weights* the file that the run
    began with. The images are prepared as a run prepares its test images, and computed in fp32 on
    the CPU.

    Raises: ImagesError for a file that is no image.
    """
    images = ImageSet(Path("/"), tuple(classes), tuple(map(_image, files)))
    backbone = read_backbone(weights)
    network = _network(trained, weights, backbone, len(classes))
    source = ImageSource(images, 0, Path("/"), backbone.preprocessing)
    logits = [
        network(source.batch(View(Split.TEST), range(first, min(first + AT_ONCE, len(files)))))
        for first in range(0, len(files), AT_ONCE)
    ]
    return torch.cat(logits).softmax(dim=1)


def _network(trained: Path, weights: Path, backbone: Backbone, num_classes: int) -> nn.Module:
    """Returns the whole network, (N, 3, S, S) -> (N, num_classes), in eval mode."""
    tensors = load_file(trained)
    if trained.stem == "head":
        head = nn.Linear(backbone.num_features, num_classes, device="meta")
        parts = {name: tensors[f"{backbone.head}.{name}"] for name in ("weight", "bias")}
        head.load_state_dict(parts, assign=True)
        return nn.Sequential(build_backbone(backbone, weights), head)
    model = shapes_of(backbone, num_classes)
    model.load_state_dict(tensors, assign=True)
    model.eval().requires_grad_(False)
    fold_batch_norm(model)
    return model


def _image(file: Path) -> ImageFile:
    """Returns an image as a scan would. Raises: ImagesError."""
    root, path = Path("/"), str(absolute(file)).lstrip("/")
    try:
        content = FolderStore(root).read(path)
        decode(content)
    except Exception as error:  # Pillow's decoders raise all kinds for a damaged image
        words = f"{printable(str(file))}: {explain(error)}"
        raise ImagesError(words, f"ls -l {quoted(file)}") from None
    return ImageFile(path, Split.TEST, 0, len(content), hashlib.sha256(content).hexdigest())
