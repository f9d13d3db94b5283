"""A ResNet18 file whose bytes are the same on every machine and with every version of skinjob.

Sweeps of an older skinjob name their weights by digest. The file (45 MB) is not in the repository;
a test makes it again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from state_dict_maker import resnet18_arrays

METADATA = {
    "architecture": "resnet18",
    "source": "fixed random numbers, for tests",
    "source_sha256": "",
    "untrained": "true",
    "licence": "none needed: random numbers",
    "resize": "256",
    "crop": "224",
    "interpolation": "bilinear",
    "antialias": "true",
    "mean": "[0.485, 0.456, 0.406]",
    "std": "[0.229, 0.224, 0.225]",
}


def write_fixed_weights(path: Path) -> Path:
    """Writes a safetensors file of uniform random numbers; their range is that of He et al.

    It uses only operations that IEEE 754 makes exact, and `RandomState`, whose numbers NumPy
    never changes.
    """
    numbers = np.random.RandomState(0)
    tensors = {}
    for name, drawn in sorted(resnet18_arrays().items()):
        width = math.sqrt(6 / np.prod(drawn.shape[1:])) if drawn.ndim > 1 else 0
        values = (2 * numbers.random_sample(drawn.shape) - 1) * width
        if name.endswith(("var", ".weight")) and drawn.ndim == 1:
            values += 0.25 if "bn2" in name and "weight" in name else 1  # features about 1
        tensors[name] = values.astype("<f4")
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join(array.tobytes() for array in tensors.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path
