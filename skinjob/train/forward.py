"""How a batch goes through the backbone: layer by layer, or compiled where that is worth it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn

from skinjob.files import write_json
from skinjob.ownership import make_private, require_safe
from skinjob.train.device import Device
from skinjob.weights.backbones import PREPROCESSING

log = logging.getLogger("skinjob")

COMPILED_BATCH = 8  # fits a core's cache; a size is compiled for, so it is not tried out
WORTH_IMAGES = 15_000  # 4 minutes of two cores, of which compiling saves a tenth and takes 8 s
TRIALS = 6  # batches by which a batch size is judged
COMPILED_TRIALS = 3  # batches by which a compiled backbone is judged, with nothing beside them

Network = Callable[[Tensor], Tensor]


class BatchSize:
    """How many images go through the backbone at once: tried on the work itself, not beside it."""

    def __init__(self, candidates: tuple[int, ...]) -> None:
        self._seconds: dict[int, list[float]] = {size: [] for size in candidates}
        self._lock = Lock()
        self.chosen = candidates[0] if len(candidates) == 1 else None

    def next(self) -> int:
        """Returns the chosen size, or, until there is one, that which was tried the least."""
        with self._lock:
            return self.chosen or min(self._seconds, key=lambda size: len(self._seconds[size]))

    def record(self, size: int, seconds: float) -> None:
        """Notes how long a batch took, and chooses once every size has had its trials."""
        with self._lock:
            if self.chosen is None and size in self._seconds:
                self._seconds[size].append(seconds)
                if all(len(tried) >= TRIALS for tried in self._seconds.values()):
                    self.chosen = max(self._seconds, key=self._images_per_s)
                    log.info("batch: %s", self.words())

    def words(self) -> str:
        """Returns the choice and its reason, for the log."""
        rates = ", ".join(f"{size}: {self._images_per_s(size):.1f}" for size in self._seconds)
        return f"{self.chosen} images per forward pass (images/s of a stream by size: {rates})"

    def _images_per_s(self, size: int) -> float:
        """Returns the rate of a stream by its best batch: the first ones warm up."""
        return size / min(self._seconds[size])


@dataclass(frozen=True)
class Forward:
    """A backbone that is ready for batches on its device."""

    network: Network
    dtype: torch.dtype
    batch_size: BatchSize
    padded_to: int | None = None
    """The one batch size that the network takes; None where it takes all."""

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the features, (B, 512) float32 on the CPU, of (B, 3, S, S) float32."""
        images = images.to(self.dtype)
        lacking = self.padded_to - len(images) if self.padded_to else 0
        if lacking > 0:
            images = torch.cat([images, images[:1].expand(lacking, -1, -1, -1)])
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)[: len(images) - lacking].float().cpu()


def choose_forward(
    backbone: nn.Module,
    device: Device,
    num_images: int,
    folder: Path,
    side: int = PREPROCESSING.crop,
) -> Forward:
    """Returns the quicker of the backbone as it is and compiled for this CPU.

    *num_images* is what all views of the sweep come to, whoever computes them; *side* is that of an
    image in pixels. What is compiled
    and what was measured stay in *folder*, apart for each kind of CPU: later jobs do alike.
    """
    backbone = backbone.to(device.type, device.dtype)
    plain = Forward(backbone, device.dtype, BatchSize(device.batches))
    if device.type != "cpu":
        return plain
    if num_images < WORTH_IMAGES:
        log.info("backbone: not compiled (%d images, worth it from %d)", num_images, WORTH_IMAGES)
        return plain
    folder = folder / cpu_digest()
    example = _example(device, side)
    compiled = _compiled(backbone, example, folder)
    if compiled is None or not _is_quicker(backbone, compiled, device, example, folder):
        return plain
    return Forward(compiled, device.dtype, BatchSize((COMPILED_BATCH,)), COMPILED_BATCH)


def cpu_digest() -> str:
    """Returns a digest of this CPU's instructions and of torch: what compiled code depends on."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    said = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    words = [platform.machine(), torch.__version__, *sorted(said)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _compiled(backbone: nn.Module, example: Tensor, folder: Path) -> Network | None:
    """Returns the backbone compiled with its weights as constants; None where that fails."""
    start = time.perf_counter()
    try:
        for place in (folder.parent, folder):  # what is kept in here is executed by later jobs
            make_private(place)
        require_safe(folder)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.absolute()))
        from torch._inductor import config as inductor  # takes seconds: only here

        torch.set_num_threads(1)  # compiled into the code: a stream has one core
        network: Network = torch.compile(backbone, dynamic=False)
        # Not as options of torch.compile: its front end would not see that weights are constants.
        with inductor.patch(freezing=True, compile_threads=1), torch.inference_mode():
            network(example)
    except Exception as error:  # no C++ compiler, no Python headers, no room: all kinds
        log.info("backbone: not compiled (%s)", str(error).strip().split("\n")[0])
        return None
    kept = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    log.info("backbone: compiled in %.1f s, kept in %s", time.perf_counter() - start, kept)
    return network


def _is_quicker(
    plain: Network, compiled: Network, device: Device, example: Tensor, folder: Path
) -> bool:
    """Says whether to use the compiled backbone: as found before on such a machine, or now."""
    file = folder / f"{device.precision}-{device.num_threads}-{example.shape[-1]}.json"
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        found = {
            "plain": _images_per_s(plain, example),
            "compiled": _images_per_s(compiled, example),
        }
        write_json(file, found)
    is_quicker = bool(found["compiled"] > found["plain"])
    log.info(
        "backbone: %s (images/s of a stream: %.1f compiled, %.1f not; batches of %d)",
        "compiled" if is_quicker else "not compiled",
        found["compiled"],
        found["plain"],
        COMPILED_BATCH,
    )
    return is_quicker


@torch.inference_mode()
def _images_per_s(network: Network, images: Tensor) -> float:
    """Returns the rate of the quickest of some batches."""
    seconds = []
    for _ in range(COMPILED_TRIALS):
        start = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - start)
    return COMPILED_BATCH / min(seconds)


def _example(device: Device, side: int) -> Tensor:
    images = torch.zeros(COMPILED_BATCH, 3, side, side, dtype=device.dtype)
    return images.contiguous(memory_format=torch.channels_last)
