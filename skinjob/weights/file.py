"""The weights file that jobs read: safetensors, with its origin in the header.

weights/<backbone>.safetensors   the tensors; metadata: where they come from, and their input
weights/SHA256SUMS               for `sha256sum -c SHA256SUMS`, which needs no Python
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skinjob.console import own_command, say
from skinjob.download import explain_full_disk, looks_like_html
from skinjob.errors import WeightsError
from skinjob.files import pointer_kind, replacing, sha256_file, sorted_safetensors
from skinjob.locks import locked
from skinjob.weights.backbones import BACKBONES, Backbone, Preprocessing, Tensor

SUMS_NAME = "SHA256SUMS"
LOCK_NAME = ".fetch.lock"  # empty, and stays
FETCH = "make fetch-weights   # on a machine with internet; then copy weights/ here"
MIN_CROP, MAX_CROP = 32, 512  # pixels; a ResNet halves a picture five times
NOTES = {"fetched": "", "demo": "  demo: pretrained on drawn shapes", "untrained": "  untrained"}
"""What a line that names a weights file ends with, by the file's kind."""

_DTYPES = {"F32": "float32", "I64": "int64"}  # safetensors' names


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself, after its digest and its tensors were checked."""

    path: Path
    sha256: str
    size_bytes: int
    backbone: Backbone  # with the preprocessing that the file asks for
    source: str
    source_sha256: str  # of the .pth; empty when it was not fetched
    kind: str  # a key of NOTES
    listed: bool  # whether SHA256SUMS beside it has its digest

    @property
    def untrained(self) -> bool:
        return self.kind == "untrained"

    @property
    def note(self) -> str:
        return NOTES[self.kind]


def read_weights_info(path: Path) -> WeightsInfo:
    """Returns what *path* says of itself; reads its header, and all of it once for the digest.

    Raises:
        WeightsError: it is missing, is not what SHA256SUMS beside it promises, is no safetensors
            file that `skinjob fetch-weights` wrote, or has other tensors than its backbone.
    """
    require_no_stand_in(path)
    try:
        sha256, size_bytes = sha256_file(path), path.stat().st_size
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file", FETCH) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}", FETCH) from error
    promised = promised_digest(path)
    if promised not in (None, sha256):
        raise WeightsError(
            f"{path}: damaged: its SHA-256 is {sha256}, {SUMS_NAME} says {promised}", FETCH
        )
    backbone, metadata = _read_checked_header(path)
    source, source_sha256, kind = (metadata[key] for key in ("source", "source_sha256", "kind"))
    listed = promised is not None
    return WeightsInfo(path, sha256, size_bytes, backbone, source, source_sha256, kind, listed)


def read_backbone(path: Path) -> Backbone:
    """Returns the network whose weights *path* has, with the preprocessing that they ask for.

    Reads the header alone. Raises: WeightsError as `read_weights_info`.
    """
    return _read_checked_header(path)[0]


def find_weights(path: Path, kind: str) -> WeightsInfo | None:
    """Returns what *path* says of itself if it is of a *kind* and sound, else None."""
    try:
        info = read_weights_info(path)
    except WeightsError:
        return None
    return info if info.kind == kind else None


def write_weights(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    backbone: Backbone,
    *,
    source: str,
    kind: str,
    source_sha256: str = "",
    licence: str = "",
) -> None:
    """Replaces *path* by a safetensors file, and its line in SHA256SUMS beside it.

    Equal arguments give equal bytes, in every version of skinjob: sweeps know weights by their
    digest. That is why "licence" and "interpolation" are written, which nothing reads.
    """
    from safetensors.numpy import save  # writes memory as it lies: in C order it has to be

    shapes = {name: Tensor(array.dtype.name, array.shape) for name, array in tensors.items()}
    backbone.check_tensors(shapes, source, "skinjob fetch-weights   # torchvision's own")
    image = backbone.preprocessing
    metadata = {
        "architecture": backbone.name,
        "source": source,
        "source_sha256": source_sha256,
        "untrained": json.dumps(kind == "untrained"),
        "licence": licence,
        "resize": str(image.resize),
        "crop": str(image.crop),
        "interpolation": "bilinear",
        "mean": json.dumps(image.mean),
        "std": json.dumps(image.std),
    }
    if kind == "demo":
        metadata["kind"] = kind
    content = sorted_safetensors(save(dict(tensors), metadata))
    with explain_full_disk(path.parent, len(content), own_command()):
        with replacing(path) as partial:
            partial.write_bytes(content)
        promise_digest(path, hashlib.sha256(content).hexdigest())


def write_demo_weights(
    path: Path, tensors: Mapping[str, NDArray[Any]], backbone: Backbone, source: str
) -> WeightsInfo:
    """Makes *path* a weights file of *tensors*, marked as pretrained by the demo.

    Their head is not kept: it has other classes than the backbone's.

    Raises:
        WeightsError: *path* holds fetched weights, or cannot be written.
    """
    head = backbone.head_tensors
    with weights_lock(path.parent):
        if info := find_weights(path, "fetched"):
            raise WeightsError(
                f"{path}: holds trained weights ({info.source}), which the demo's do not replace",
                f"mv {shlex.quote(str(path))} ELSEWHERE",
            )
        arrays = {name: np.array(array, order="C") for name, array in tensors.items()}
        arrays |= {name: np.zeros(tensor.shape, tensor.dtype) for name, tensor in head.items()}
        write_weights(path, arrays, backbone, source=source, kind="demo")
    return read_weights_info(path)


def weights_lock(folder: Path) -> AbstractContextManager[bool]:
    """Returns the lock of a weights folder, which is made if need be. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_NAME
    words = f"waiting for another fetch-weights or demo (it holds {lock})"
    return locked(lock, tell_waiting=lambda: say(words, is_error=True))


# --- files that people take for weights -------------------------------------------------------


def require_no_stand_in(path: Path) -> None:
    """Changes nothing. Raises: WeightsError for a pointer of Git or a web page."""
    try:
        with path.open("rb") as content:
            head = content.read(512)
    except OSError:  # its reader tells
        return
    if kind := pointer_kind(head):
        command = "git lfs pull" if "LFS" in kind else "git annex get ."
        raise WeightsError(
            f"{path}: {kind}, not the weights", f"{command}   # where it was cloned; then copy it"
        )
    if looks_like_html(head):
        raise WeightsError(f"{path}: an HTML page, not weights", FETCH)


def require_no_safetensors(path: Path) -> None:
    """Changes nothing. Raises: WeightsError for a safetensors file in the place of a .pth."""
    try:
        tensors, metadata = _read_header(path)
    except WeightsError:
        return
    if "architecture" in metadata:
        raise WeightsError(
            f"{path}: this file was made by skinjob fetch-weights already",
            f"skinjob submit --weights {shlex.quote(str(path))}",
        )
    raise _of_another_maker(path, tensors)


def _of_another_maker(path: Path, names: Iterable[str]) -> WeightsError:
    """Returns the error on a safetensors file without its origin, by its tensors' *names*."""
    of_another_maker = f"{path}: a safetensors file of another maker"
    known = set().union(*(backbone.tensors for backbone in BACKBONES.values()))
    if unknown := sorted(set(names) - known):
        titles = " or ".join(backbone.title for backbone in BACKBONES.values())
        library = " (Hugging Face's names)" if unknown[-1].startswith("resnet.") else ""
        words = f"its {unknown[0]!r:.80} is no tensor of torchvision's {titles}{library}"
        return WeightsError(f"{of_another_maker}: {words}", FETCH)
    program = (
        "import torch; from safetensors.torch import load_file;"
        f' torch.save(load_file({json.dumps(str(path))}), "new.pth")'
    )
    return WeightsError(
        f"{of_another_maker}: nothing in it says what it is",
        f"python -c {shlex.quote(program)} && skinjob fetch-weights --source new.pth",
    )


# --- the header -------------------------------------------------------------------------------


def _read_checked_header(path: Path) -> tuple[Backbone, dict[str, str]]:
    """Returns what the header says, with "kind" filled in, if it is that of a known backbone."""
    tensors, metadata = _read_header(path)
    if "architecture" not in metadata:
        raise _of_another_maker(path, tensors)
    backbone = BACKBONES.get(metadata["architecture"])
    if not backbone:
        words = f"architecture {metadata['architecture']}, {' or '.join(BACKBONES)} expected"
        raise WeightsError(f"{path}: {words}", FETCH)
    backbone.check_tensors(tensors, str(path), FETCH)
    try:
        kind = "fetched" if metadata["untrained"] == "false" else "untrained"
        metadata = {"kind": kind} | metadata
        resize, crop = int(metadata["resize"]), int(metadata["crop"])
        mean, std = _three_numbers(metadata["mean"]), _three_numbers(metadata["std"])
        is_usable = (
            metadata["kind"] in NOTES
            and metadata.keys() >= {"source", "source_sha256"}
            and MIN_CROP <= crop <= MAX_CROP
            and all(map(math.isfinite, mean))
            and all(0 < deviation < math.inf for deviation in std)
        )
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError):
        is_usable = False
    if not is_usable:
        words = ", ".join(f"{key} {value}" for key, value in metadata.items())
        raise WeightsError(f"{path}: its metadata cannot be used: {words:.500}", FETCH)
    preprocessing = Preprocessing(resize, crop, mean, std)
    return dataclasses.replace(backbone, preprocessing=preprocessing), metadata


def _three_numbers(text: str) -> tuple[float, float, float]:
    red, green, blue = json.loads(text)
    return float(red), float(green), float(blue)


def _read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns a safetensors file's tensors (without their numbers) and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as content:
            tensors = {}
            for name in content.keys():  # noqa: SIM118 (a safe_open is no mapping)
                view = content.get_slice(name)
                dtype = view.get_dtype()
                tensors[name] = Tensor(_DTYPES.get(dtype, dtype), tuple(view.get_shape()))
            return tensors, content.metadata() or {}
    except (SafetensorError, OSError) as error:
        if path.is_file() and zipfile.is_zipfile(path):
            raise WeightsError(
                f"{path}: a torch file (.pth): jobs read the safetensors file that is made of it",
                f"skinjob fetch-weights --source {shlex.quote(str(path))}",
            ) from error
        raise WeightsError(f"{path}: no safetensors file, or cut off: {error}", FETCH) from error


# --- SHA256SUMS -------------------------------------------------------------------------------


def promised_digest(path: Path) -> str | None:
    """Returns the digest that SHA256SUMS beside *path* promises for it, None when it has none.

    Raises: WeightsError when SHA256SUMS is there and cannot be read.
    """
    digests = [match[1].lower() for _, match in _sums(path) if match]
    return digests[0] if digests else None


def promise_digest(path: Path, digest: str) -> None:
    """Writes the line of *path* into SHA256SUMS beside it; lines of other files stay."""
    lines = [line for line, match in _sums(path) if line and not match]
    text = "".join(f"{line}\n" for line in [*lines, f"{digest}  {path.name}"])
    with replacing(path.parent / SUMS_NAME) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def _sums(path: Path) -> list[tuple[str, re.Match[str] | None]]:
    """Returns the lines of SHA256SUMS beside *path*, with a match of those that are about it."""
    file = path.with_name(SUMS_NAME)
    of_path = re.compile(rf"([0-9a-fA-F]{{64}}) [ *]{re.escape(path.name)}")
    try:
        # As sha256sum splits them: a name may have what str.splitlines would take for an end.
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WeightsError(
            f"{file}: cannot be read: {error.strerror}", f"ls -l {shlex.quote(str(file.parent))}"
        ) from error
    return [(line, of_path.fullmatch(line)) for line in lines]
