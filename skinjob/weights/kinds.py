"""Names for files that people give as weights and that are something else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from skinjob.download import looks_like_html
from skinjob.errors import WeightsError
from skinjob.files import pointer_kind
from skinjob.weights.backbones import layout

HEAD_BYTES = 512
MOST_HEADER_BYTES = 1 << 24  # of safetensors; ResNet152's is 60 kB
FETCH = "make fetch-weights   # on a machine with internet; then copy weights/ here"


def head_of(path: Path) -> bytes:
    """Returns the first bytes of a file; none where it cannot be read, which its reader says."""
    try:
        with path.open("rb") as content:
            return content.read(HEAD_BYTES)
    except OSError:
        return b""


def require_no_stand_in(path: Path, fix: str = FETCH) -> None:
    """Changes nothing. Raises: WeightsError for a pointer of Git or a web page."""
    head = head_of(path)
    if kind := pointer_kind(head):
        command = "git lfs pull" if "LFS" in kind else "git annex get ."
        raise WeightsError(
            f"{path}: {kind}, not the weights", f"{command}   # where it was cloned; then copy it"
        )
    if looks_like_html(head):
        raise WeightsError(f"{path}: an HTML page, not weights", fix)


def require_no_torch_file(path: Path) -> None:
    """Changes nothing. Raises: WeightsError for a .pth in the place of what is made of it."""
    if head_of(path).startswith(b"PK\x03\x04"):
        raise WeightsError(
            f"{path}: a torch file (.pth): jobs read the safetensors file that is made of it",
            f"skinjob fetch-weights --source {shlex.quote(str(path))}",
        )


def require_no_safetensors(path: Path) -> None:
    """Changes nothing. Raises: WeightsError for a safetensors file in the place of a .pth."""
    try:
        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = content.read(length) if length < MOST_HEADER_BYTES else b""
        tensors = json.loads(header)
        is_ours = "architecture" in tensors.pop("__metadata__", {})
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):
        return
    if is_ours:
        raise WeightsError(
            f"{path}: this file was made by skinjob fetch-weights already",
            f"skinjob submit --weights {shlex.quote(str(path))}",
        )
    raise strange_safetensors(path, tensors)


def strange_safetensors(path: Path, names: Iterable[str]) -> WeightsError:
    """Returns the error on a safetensors file of another maker, by its tensors' *names*."""
    strange = sorted(set(names) - layout().keys())
    if strange:
        of = " (Hugging Face's names)" if any(n.startswith("resnet.") for n in strange) else ""
        words = f"its {strange[0]!r:.80} is no tensor of torchvision's ResNet18{of}"
        return WeightsError(f"{path}: a safetensors file of another maker: {words}", FETCH)
    convert = (
        "import torch; from safetensors.torch import load_file;"
        f' torch.save(load_file({json.dumps(str(path))}), "new.pth")'
    )
    return WeightsError(
        f"{path}: a safetensors file of another maker: nothing in it says what it is",
        f"python -c {shlex.quote(convert)} && skinjob fetch-weights --source new.pth",
    )
