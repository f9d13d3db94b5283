"""Goes the whole way with torch: bundle, copy, install, train on SLURM, report, and back.

The cluster is a real SLURM with fake GPUs in a network namespace with loopback only. Needs root, a
package index, about 20 GB below --folder, and 10 minutes. It prints each command with its seconds,
then what was counted: sizes, files, and attempts to reach another machine.

Example:
  python tests/benchmarks/way.py > transcript.txt
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / place) for place in ("tests/support", "")]

import air_gap  # noqa: E402
from cluster import Slurm  # noqa: E402
from untrained import write_untrained  # noqa: E402

from skinjob.data.lesions import make_images  # noqa: E402

BUNDLE = "skinjob bundle --for cluster.txt --cpu --python {}.{}"
SUBMIT = "--data ../images.zip --batch-sizes 16,32 --epochs 3 --device cpu --cpus 2 --mem 6"


def main() -> None:
    """Goes the way and prints a transcript. Raises: AssertionError where it is not whole."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--folder", type=Path, default=Path("/tmp"), help="[default: /tmp]")
    options = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="way-", dir=options.folder))
    slurm = Slurm.start(folder / "slurm", cpus=2)
    try:
        with air_gap.air_gap(folder, slurm, show) as way:
            go(way)
    finally:
        slurm.stop()
        shutil.rmtree(folder)


def go(way: air_gap.Way) -> None:
    """Goes the way and prints what was counted."""
    write_untrained(way.laptop / "weights/resnet18.safetensors")
    make_images(way.laptop / "skin_cancer", num_train=40, num_test=20)
    before = way.attempts()
    air_gap.describe(way)
    way.on_laptop(BUNDLE.format(*sys.version_info[:2]))
    print(sizes("bundle", way.laptop / "skinjob-bundle"))
    air_gap.carry(way)
    air_gap.carry_images(way)
    air_gap.install(way)
    print(sizes("installed", way.home / "site"))
    air_gap.train(way, SUBMIT)
    air_gap.bring_back(way)
    tried = way.attempts() - before
    assert not (differing := air_gap.differences(way)), differing
    print("report on the laptop: equal to the cluster's, every file")
    print(f"attempts to reach another machine, and look-ups: {tried}")
    print(f"the same count after a look-up and a connect that were meant: {air_gap.control(way)}")
    assert tried == 0


def show(where: str, line: str, seconds: float, output: str) -> None:
    """Prints a command as it was called, its output and its seconds."""
    print(f"\n{where}$ {line}\n{output.rstrip()}\n[{seconds:.1f} s]", flush=True)


def sizes(name: str, folder: Path) -> str:
    """Returns a line with the size of a folder and the number of its files.

    >>> sizes("empty", Path(tempfile.mkdtemp()))
    'empty: 0 MB in 0 files'
    """
    files = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    return f"{name}: {sum(file.st_size for file in files) / 1e6:,.0f} MB in {len(files):,} files"


if __name__ == "__main__":
    main()
