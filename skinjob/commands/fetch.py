"""On the laptop: `skinjob fetch-weights`."""

from __future__ import annotations

from pathlib import Path

import click

from skinjob.commands.help import TaskCommand
from skinjob.console import say


@click.command(cls=TaskCommand)
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
    help="A mirror's URL, or a file that is there already.",
)
@click.option(
    "--sha256", help="Digest of the source, 64 hex digits; needed when its name carries none."
)
def fetch_weights(out: Path, source: str | None, sha256: str | None) -> None:
    """Download and check the pretrained ResNet18. Needs no torch.

    It goes on where a download broke off, and leaves a file that is ready for scp.

    \b
    Example:
      skinjob fetch-weights
      scp weights/resnet18.safetensors weights/SHA256SUMS cluster:skinjob/weights/
    """
    from skinjob.weights.file import fetch_weights as fetch

    fetched = fetch(out, source, sha256)
    say(f"{fetched.path} {'is there already, and whole' if fetched.already else 'written'}")
    say(f"sha256  {fetched.sha256}")
    say(f"size    {fetched.size_bytes:,} bytes")
    say(f"source  {fetched.source}")
    say("", f"next:  {fetched.scp_line}")
    say("there: (cd skinjob/weights && sha256sum -c SHA256SUMS)")
