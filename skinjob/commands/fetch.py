"""`skinjob fetch-weights`, for the laptop."""

from __future__ import annotations

from pathlib import Path

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.transfer import print_transfer
from skinjob.config import ARCHS
from skinjob.console import say
from skinjob.weights.backbones import DEFAULT


@click.command(
    cls=TaskCommand,
    help=f"""Download and check a pretrained network. Needs no torch.

    An interrupted download is resumed. `skinjob bundle` packs the weights with all packages.

    \b
    Example:
      skinjob fetch-weights
      skinjob fetch-weights --arch resnet50
      scp weights/{DEFAULT.file_name} weights/SHA256SUMS cluster:skinjob/weights/
    """,
)
@click.option(
    "--arch",
    type=click.Choice(ARCHS),
    metavar="NAME",
    show_default=f"what --source names, else {DEFAULT.name}",
    help=f"Network of torchvision: {', '.join(ARCHS)}.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="weights",
    show_default=True,
    help="Folder to write to.",
)
@click.option(
    "--source",
    show_default="download.pytorch.org",
    help="URL of a mirror, or a file on this machine.",
)
@click.option(
    "--sha256", help="SHA-256 of the source, 64 hex digits; needed if its name has no digest."
)
def fetch_weights(arch: str | None, out: Path, source: str | None, sha256: str | None) -> None:
    from skinjob.weights.fetch import fetch_weights as fetch
    from skinjob.weights.file import SUMS_NAME

    weights, is_old = fetch(out, source, sha256, arch)
    say(f"{weights.path} {'is already complete' if is_old else 'written'}")
    say(f"sha256  {weights.sha256}")
    say(f"size    {weights.size_bytes:,} bytes")
    say(f"source  {weights.source}")
    say()
    files = [weights.path, weights.path.with_name(SUMS_NAME)]
    print_transfer(files, "skinjob/weights/", weights.size_bytes)
    say(f"check there: (cd skinjob/weights && sha256sum -c {SUMS_NAME})")
