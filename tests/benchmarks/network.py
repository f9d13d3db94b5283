"""Compares ways to put a batch through the frozen backbone, on one core: plain, fused, compiled.

The clock is the CPU time of the thread, so other processes disturb little. Compiling is not in the
rates; its seconds are printed. Another CPU is imitated by what oneDNN may use:

  ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python tests/benchmarks/network.py

Example:
  python tests/benchmarks/network.py --precision fp32,bf16 --batch-size 8
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common import bare_parser, hardware, in_turns, ratio, report, spread
from raw import Setting, compiled_backbone
from torch import Tensor
from untrained import write_untrained

from skinjob.train.device import DTYPES
from skinjob.train.forward import OneDnnResNet, noise
from skinjob.train.model import build_backbone
from skinjob.weights.backbones import DEFAULT


def main() -> None:
    """Measures all ways in turns and prints rates and ratios."""
    options = command_line()
    print(f"on {hardware()}, oneDNN {os.environ.get('ONEDNN_MAX_CPU_ISA', 'with all it has')}")
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="skinjob-bench-") as folder:
        weights = options.weights or write_untrained(Path(folder) / "resnet18.safetensors").path
        actions = {
            f"{how} {precision}": lambda network=network, precision=precision: rate(
                network, noise(options.batch_size, 224).to(DTYPES[precision])
            )
            for precision in options.precision.split(",")
            for how, network in networks(weights, precision, options).items()
        }
    rates = in_turns(actions, options.n)
    results = [spread(name, rates[name], "images/s of a core") for name in rates]
    for name in rates:
        plain = f"plain {name.split()[1]}"
        if name != plain:
            results.append(ratio(f"{name}/plain", rates[name], rates[plain]))
    report(results, options.json)


def command_line() -> argparse.Namespace:
    """Returns the options."""
    arguments = bare_parser(__doc__, n=9)
    arguments.add_argument("--weights", type=Path, help="weights file [default: untrained]")
    arguments.add_argument("--precision", default="fp32,bf16", help="[default: %(default)s]")
    arguments.add_argument("--batch-size", type=int, default=8, help="[default: %(default)s]")
    arguments.add_argument("--compiled", action="store_true", help="also compiled by torch")
    return arguments.parse_args()


def networks(
    weights: Path, precision: str, options: argparse.Namespace
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Returns the ways to compute in a precision; the fused one is missing where it cannot be."""
    backbone = build_backbone(DEFAULT, weights).to(DTYPES[precision])
    found: dict[str, Callable[[Tensor], Tensor]] = {"plain": backbone}
    try:
        found["fused"] = OneDnnResNet(backbone)
    except RuntimeError as error:
        print(f"{precision}: not fused ({error})")
    if options.compiled:
        start = time.perf_counter()
        found["compiled"] = compiled_backbone(backbone, Setting(options.batch_size, 1, precision))
        print(f"{precision}: compiled in {time.perf_counter() - start:.1f} s")
    return found


@torch.inference_mode()
def rate(network: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Returns images a second of CPU time, of the fastest of three passes after a first."""
    seconds = []
    for _ in range(4):
        start = time.thread_time()
        network(images)
        seconds.append(time.thread_time() - start)
    return len(images) / min(seconds[1:])


if __name__ == "__main__":
    main()
