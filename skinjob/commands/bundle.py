"""`skinjob bundle`, for the laptop, and `skinjob verify`, for any machine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.transfer import print_transfer
from skinjob.console import print_table, print_unescaped, say, typed_command
from skinjob.errors import BundleError, ImagesError
from skinjob.files import absolute
from skinjob.weights.backbones import BACKBONES, DEFAULT
from skinjob.words import list_first, pluralize

if TYPE_CHECKING:
    from skinjob.bundle.resolve import Wheel
    from skinjob.bundle.target import Target
    from skinjob.data.images import ImageSet
    from skinjob.weights.file import WeightsInfo

FILE = click.Path(path_type=Path)
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class Size(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number of bytes, such as 2G."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,6})([KMG]?)B?", str(value).upper())
        if not match or int(match[1]) * UNITS[match[2]] < 10**6:
            self.fail(f"{value!r} is no size of at least 1M (such as 700M or 2G)", param, ctx)
        return int(match[1]) * UNITS[match[2]]


@click.command(cls=TaskCommand)
@click.option(
    "--for", "described", metavar="FILE", type=FILE, help="What describe.sh wrote on the cluster."
)
@click.option("--python", metavar="X.Y", help="The cluster's Python; replaces the file's.")
@click.option("--glibc", metavar="X.Y", help="The cluster's glibc; without a file 2.28.")
@click.option("--arch", help="The cluster's processor; without a file x86_64.")
@click.option("--driver", type=int, help="Major version of the NVIDIA driver, such as 535.")
@click.option("--sm", type=int, help="Compute capability of the oldest GPU, such as 80.")
@click.option("--cpu", "is_cpu", is_flag=True, help="Bundle torch for machines without a GPU.")
@click.option(
    "--weights",
    type=FILE,
    default=f"weights/{DEFAULT.file_name}",
    show_default=True,
    help="Weights file; fetched if it is missing (weights/resnet50.safetensors, ...).",
)
@click.option("--data", type=FILE, help="Images to carry as one file: a folder, a zip or a tar.")
@click.option(
    "--with-python",
    metavar="FILE.tar.gz",
    type=FILE,
    help="A Python to carry: an install_only archive of python-build-standalone.",
)
@click.option(
    "--out", type=FILE, default="skinjob-bundle", show_default=True, help="Folder to write to."
)
@click.option("--split", type=Size(), help="Also write parts of this size, such as 2G.")
@click.option("--dry-run", is_flag=True, help="Print packages and sizes; download no package.")
@click.option(
    "--print-describe", is_flag=True, help="Print a script that describes a cluster; only that."
)
def bundle(
    described: Path | None,
    weights: Path,
    data: Path | None,
    with_python: Path | None,
    out: Path,
    split: int | None,
    dry_run: bool,
    print_describe: bool,
    is_cpu: bool,
    **asked: Any,
) -> None:
    """Pack skinjob, torch and weights for an offline cluster.

    Writes a folder with all packages for the cluster's Python, glibc, driver and GPU, and with
    install.sh, which installs them there. This machine needs no torch and may be a Mac. A broken
    download is resumed.

    \b
    Example:
      skinjob bundle --print-describe > describe.sh   # run it on the cluster
      skinjob bundle --for cluster.txt
      skinjob bundle --for cluster.txt --data skin_cancer
      skinjob bundle --python 3.12 --driver 535 --dry-run
    """
    from skinjob.bundle.carried import read_python
    from skinjob.bundle.resolve import find_project, resolve
    from skinjob.bundle.target import choose_torch, make_target, read_description
    from skinjob.bundle.write import require_place, script, split_bundle, write_bundle

    if print_describe:
        print_unescaped(script("describe.sh").rstrip("\n"))
        return
    carried = read_python(with_python) if with_python else None
    if carried and not asked["python"]:
        asked["python"] = carried.version
    known = {"arch": asked["arch"], "python": asked["python"]}
    facts = read_description(described, **known) if described else {}
    target = make_target(facts, {**asked, "is_cpu": is_cpu or None})
    build, note = choose_torch(target)
    _print_target(target, note)
    if carried:
        carried.require_fits(target)
    require_place(out)
    images = _scan(data) if data else None
    project = find_project()
    wheels, pylock = resolve(target, build, project)
    _print_wheels(wheels, target)
    if dry_run:
        return
    info = _read_weights(weights)
    beside = absolute(out).parent  # /tmp may be too small for images
    beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".images-", dir=beside) as temporary:
        extras = {"python/python.tar.gz": carried.archive} if carried else {}
        if images:
            archive, kind = _one_file(images, Path(temporary))
            extras[f"images/images.{kind}"] = archive
        made = write_bundle(out, target, build, wheels, pylock, project, info, extras)
    say("", f"bundle  {made.folder}, {made.num_bytes / 1e6:,.0f} MB", f"digest  {made.sha256}")
    say(f"needs   {made.room_bytes / 1e6:,.0f} MB and {made.room_files:,} files on the cluster")
    say("")
    folder, script_name = made.folder, "install.sh"
    if split:
        folder, script_name = split_bundle(made, split), "join.sh"
    print_transfer([folder], "", made.num_bytes)
    say(f"then on the login node: sh {shlex.quote(folder.name)}/{script_name}")


def _print_target(target: Target, note: str) -> None:
    gpu = "no GPU" if target.is_cpu else f"driver {target.driver or 'unknown'}"
    gpu += f", sm_{target.sm}" if target.sm else ""
    say(f"for     Python {target.python}, glibc {target.glibc}, {target.arch}, {gpu}")
    if note:
        say(f"note    {note}")


def _print_wheels(wheels: list[Wheel], target: Target) -> None:
    rows = [
        (w.name, w.version, f"{w.size_bytes / 1e6:,.1f}" if w.size_bytes else "?") for w in wheels
    ]
    say("")
    print_table(("package", "version", "MB"), rows, left=("version",))
    total = sum(wheel.size_bytes or 0 for wheel in wheels)
    names = {wheel.name for wheel in wheels}
    say("", f"{pluralize(len(wheels), 'package')}, {total / 1e6:,.0f} MB to download")
    say(f"installed about {2 * total / 1e6:,.0f} MB")
    if target.is_cpu and any(name.startswith("nvidia-") for name in names):
        say("note    the CPU build is on download.pytorch.org, which cannot be reached;")
        say("        this build also runs without a GPU")


def _read_weights(file: Path) -> WeightsInfo:
    """Returns the info of a weights file, after its check; fetches it if it is missing."""
    from skinjob.weights.fetch import fetch_weights
    from skinjob.weights.file import read_weights_info

    if not file.exists() and file.name == f"{file.stem}.safetensors" and file.stem in BACKBONES:
        fetch_weights(file.parent, arch=file.stem)
    return read_weights_info(file)


def _scan(data: Path) -> ImageSet:
    """Returns the images to carry. Raises: ImagesError, with a fix for the bundle."""
    from skinjob.data.scan import scan
    from skinjob.data.store import quoted

    try:
        return scan(data)
    except ImagesError as error:
        pack = f"skinjob pack-images {quoted(data)} --skip-bad-images --out good.zip"
        again = f"{pack} && skinjob bundle --data good.zip"
        error.fix = error.fix.replace("skinjob submit --data", "skinjob bundle --data")
        error.fix = error.fix.replace("skinjob submit --skip-bad-images", again)
        raise


def _one_file(images: ImageSet, folder: Path) -> tuple[Path, str]:
    """Returns an archive of images as it is, or a zip of a folder's; and "zip" or "tar".

    Raises: ImagesError.
    """
    from skinjob.data.pack import pack_images
    from skinjob.data.store import ArchiveStore

    if isinstance(images.store, ArchiveStore):
        return images.root, "zip" if images.store.is_zip else "tar"
    file = folder / "images.zip"
    pack_images(images, file)
    return file, "zip"


@click.command(cls=TaskCommand)
@click.argument("path", nargs=-1, type=FILE)
@click.option(
    "--data",
    metavar="PATH",
    type=FILE,
    show_default="where the sweep was submitted",
    help="Folder or archive of a sweep's images.",
)
def verify(path: tuple[Path, ...], data: Path | None) -> None:
    """Compare files with the digests that travel with them.

    PATH is a folder with SHA256SUMS (weights, a bundle, its parts), a pack, a sweep or a run; the
    default is weights/. A sweep's images are compared with its images.csv, and each run's files
    with its state. Each fault is a line; exit code 1.

    \b
    Example:
      skinjob verify
      skinjob verify weights runs/my-sweep
    """
    from skinjob.bundle.verify import find_faults

    faults = []
    for each in path or (Path("weights"),):
        compared, lines = find_faults(each, data)
        say(f"{each}: {pluralize(len(lines), 'fault') if lines else 'no fault'} in {compared}")
        faults += lines
    if faults:
        raise BundleError(
            f"{pluralize(len(faults), 'fault')}: {list_first(faults, 1, separator='; ')}",
            f"{typed_command()}   # after the named files are copied again",
            faults,
        )
