"""A weights file of random numbers, for tests and benchmarks: no internet, no pretraining."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from skinjob.weights.backbones import DEFAULT
from skinjob.weights.file import WeightsInfo, read_weights_info, write_weights
from skinjob.weights.tensors import COUNTER


def write_untrained(path: Path, seed: int = 0, crop: int | None = None) -> WeightsInfo:
    """Writes weights that are marked as untrained; the same *seed* gives the same bytes.

    *crop* is the side of the input; the default is the published one. Convolutions are drawn as He
    et al., "Delving Deep into Rectifiers" (2015), by fan-out.
    """
    numbers = np.random.default_rng(seed)
    tensors = {}
    for name, tensor in DEFAULT.tensors.items():
        shape = tensor.shape
        if name.endswith(COUNTER):
            continue
        if len(shape) == 4:  # a convolution: (out, in, height, width)
            values = numbers.normal(0, math.sqrt(2 / (shape[0] * shape[2] * shape[3])), shape)
        elif name.startswith(f"{DEFAULT.head}."):
            bound = 1 / math.sqrt(DEFAULT.num_features)
            values = numbers.uniform(-bound, bound, shape)
        else:  # a batch norm that changes nothing
            values = np.full(shape, 1.0 if name.endswith((".weight", ".running_var")) else 0.0)
        tensors[name] = values.astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f"untrained (random numbers, seed {seed})"
    image = DEFAULT.preprocessing
    backbone = replace(DEFAULT, preprocessing=replace(image, crop=crop or image.crop))
    write_weights(path, tensors, backbone, source=source, kind="untrained")
    return read_weights_info(path)
