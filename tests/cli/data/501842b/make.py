"""Makes what is in this folder; needs the package of commit 501842b on PYTHONPATH, see README.md.

PYTHONPATH=OLD:tests/support python tests/cli/data/501842b/make.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from fixed_weights import write_fixed_weights
from PIL import Image

PROJECT = Path("/tmp/skinjob-501842b/project")
HERE = Path(__file__).parent
KEPT = ("*.json", "*.csv", "*.safetensors", "*.pt", "*.log", "*.out", "*.html")
OPTIONS = (
    *("--cluster", "local", "--device", "cpu", "--precision", "fp32"),
    *("--lr", "0.01", "--epochs", "12"),
)


def main() -> None:
    shutil.rmtree(PROJECT.parent, ignore_errors=True)
    make_images(PROJECT / "skin_cancer")
    os.environ["TMPDIR"] = str(PROJECT.parent)  # a queue that no other process uses
    write_fixed_weights(PROJECT / "weights/resnet18.safetensors")
    # The runs that are to be stopped come first: with cached views a run ends too quickly.
    submit("old", "8", "0")
    os.kill(int(wait_for_epoch("bs0008-lr0.01-seed0", 3)["pid"]), signal.SIGKILL)
    wait_for_end("bs0008-lr0.01-seed0")  # failed
    submit("old", "4", "1")
    wait_for_epoch("bs0004-lr0.01-seed1", 6)
    skinjob("cancel", "old", "bs0004-lr0.01-seed1")
    wait_for_end("bs0004-lr0.01-seed1")  # cancelled in mid-run
    submit("old", "4", "0", "--wait")  # done
    submit("old", "8", "1", "--wait")  # done
    submit("whole", "4", "1", "--wait")  # how the cancelled run would have ended
    skinjob("report", "old")
    skinjob("status", "old")
    keep()


def make_images(root: Path) -> None:
    """Makes two classes of noise, which differ a little in colour."""
    draws = np.random.RandomState(0)
    for split, count in (("train", 8), ("test", 4)):
        for name, redness in (("benign", 100), ("malignant", 130)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.randint(0, 120, (24, 20, 3))
                pixels[..., 0] += redness
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def skinjob(*words: str) -> int:
    print("$ skinjob", *words, flush=True)
    return subprocess.run([sys.executable, "-m", "skinjob", *words], cwd=PROJECT).returncode


def submit(name: str, sizes: str, seeds: str, *options: str) -> None:
    skinjob(
        *("submit", "--name", name, "--batch-sizes", sizes, "--seeds", seeds, *OPTIONS, *options)
    )


def state(run: str) -> dict[str, object]:
    return dict(json.loads((PROJECT / "runs/old" / run / "state.json").read_text()))


def wait_for_epoch(run: str, epoch: int) -> dict[str, object]:
    while (current := state(run))["epoch"] < epoch:  # type: ignore[operator]
        time.sleep(0.05)
    return current


def wait_for_end(run: str) -> None:
    while state(run)["state"] not in ("done", "failed"):
        time.sleep(0.5)
    time.sleep(5)  # until the queue's process has ended


def keep() -> None:
    """Copies what the tests need, without pictures and with another name for this machine."""
    shutil.rmtree(HERE / "project", ignore_errors=True)
    runs = PROJECT / "runs"
    files = [file for pattern in KEPT for file in (runs / "old").rglob(pattern)]
    files += [*(PROJECT / "skin_cancer").rglob("*.png"), *runs.glob("whole/*/metrics.csv")]
    for file in files:
        copy = HERE / "project" / file.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_bytes()
        if file.suffix in (".json", ".log", ".out", ".html"):
            content = re.sub(rb"data:image/[^\"]*", b"", content)  # the page's pictures
            name = re.escape(socket.gethostname()).encode()
            content = re.sub(rb"\b" + name + rb"\b", b"old-machine", content)
        copy.write_bytes(content)


if __name__ == "__main__":
    main()
