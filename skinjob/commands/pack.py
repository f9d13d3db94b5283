"""`skinjob pack-images`: images in one file."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.transfer import print_transfer
from skinjob.console import say
from skinjob.files import sha256_file
from skinjob.words import pluralize

FILE = click.Path(path_type=Path)


@click.command(cls=TaskCommand)
@click.argument("data", type=FILE)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="images.zip",
    show_default=True,
    help="Zip to write.",
)
@click.option("--skip-bad-images", is_flag=True, help="Leave out images that cannot be used.")
def pack_images(data: Path, out: Path, skip_bad_images: bool) -> None:
    """Pack a folder of images into one zip, for --data.

    It is read in place. One file is copied much faster than thousands, and is easier on the
    cluster's file system. Checks every image. Equal images give an equal zip.

    \b
    Example:
      skinjob pack-images skin_cancer
    """
    from skinjob.data.pack import pack_images as pack
    from skinjob.data.scan import scan

    images = scan(data, skips_bad=skip_bad_images)
    pack(images, out)
    say(f"zip     {out}, {pluralize(len(images.files), 'image')}", f"sha256  {sha256_file(out)}")
    if images.skipped:
        say(f"skipped {pluralize(len(images.skipped), 'faulty image')}")
    say("")
    print_transfer([out], "skinjob/", out.stat().st_size)
    say("", f"then on the login node: skinjob submit --data {shlex.quote(out.name)}")
