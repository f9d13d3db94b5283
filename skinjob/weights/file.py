"""The weights file that jobs read: safetensors, with its source in the header.

weights/<backbone>.safetensors   the tensors; metadata: their source and preprocessing
weights/SHA256SUMS               for `sha256sum -c SHA256SUMS`, which needs no Python
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skinjob.console import say, typed_command
from skinjob.download import explain_full_disk, looks_like_html
from skinjob.errors import WeightsError
from skinjob.files import pointer_kind, read_sums, replacing, sha256_file, sorted_safetensors
from skinjob.locks import locked
from skinjob.weights.backbones import BACKBONES, DEFAULT, Backbone, backbone_with
from skinjob.weights.tensors import Tensor

SUMS_NAME = "SHA256SUMS"
LOCK_NAME = ".fetch.lock"  # an empty file, which stays
MIN_CROP, MAX_CROP = 32, 512  # pixels; a ResNet halves a picture five times
KINDS = {"fetched": "", "demo": "pretrained on drawn shapes", "untrained": "untrained"}
"""What the user should know of a weights file, by its kind."""

HUGGING_FACE = ("resnet.", "efficientnet.", "convnext.", "vit.")  # how its names begin

_DTYPES = {"F32": "float32", "I64": "int64"}  # safetensors' names


@dataclass(frozen=True)
class WeightsInfo:
    """The content of a weights file's header, after a check of its digest and its tensors."""

    path: Path
    sha256: str
    size_bytes: int
    backbone: Backbone  # with the preprocessing of the file
    source: str
    source_sha256: str  # of the .pth; empty if it was not fetched
    kind: str  # a key of KINDS
    listed: bool  # whether SHA256SUMS in its folder has its digest

    @property
    def untrained(self) -> bool:
        return self.kind == "untrained"

    @property
    def note(self) -> str:
        """The end of a line about the file."""
        words = KINDS[self.kind]
        return f"  {'demo: ' if self.kind == 'demo' else ''}{words}" if words else ""


def read_weights_info(path: Path, arch: str | None = None) -> WeightsInfo:
    """Returns the info of a weights file; reads the whole file for the digest.

    Raises:
        WeightsError: it is missing, differs from its digest in SHA256SUMS, was not written by
            `skinjob fetch-weights`, has other tensors than its backbone, or another backbone than
            *arch*.
    """
    require_no_stand_in(path)
    try:
        sha256, size_bytes = sha256_file(path), path.stat().st_size
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file", _fetch(path)) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}", _fetch(path)) from error
    expected = listed_digest(path)
    if expected not in (None, sha256):
        raise WeightsError(
            f"{path}: damaged: its SHA-256 is {sha256}, {SUMS_NAME} says {expected}", _fetch(path)
        )
    backbone, metadata = _read_checked_header(path)
    if arch not in (None, backbone.name):
        raise WeightsError(
            f"{path}: the weights of {backbone.name}, but --arch is {arch}",
            f"skinjob submit --arch {arch} --weights weights/{arch}.safetensors"
            f"   # fetched by skinjob fetch-weights --arch {arch}",
        )
    source, source_sha256, kind = (metadata[key] for key in ("source", "source_sha256", "kind"))
    listed = expected is not None
    return WeightsInfo(path, sha256, size_bytes, backbone, source, source_sha256, kind, listed)


def read_backbone(path: Path) -> Backbone:
    """Returns the network of a weights file, with its preprocessing.

    Reads only the header. Raises: WeightsError as `read_weights_info`.
    """
    return _read_checked_header(path)[0]


def find_weights(path: Path, kind: str) -> WeightsInfo | None:
    """Returns the info of a weights file if it is valid and of this *kind*, else None."""
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
    """Replaces *path* by a safetensors file, and its line in SHA256SUMS.

    Equal arguments give equal bytes in every version of skinjob, because sweeps identify weights by
    their digest. Therefore it writes "licence" and "interpolation", which nothing reads.
    """
    from safetensors.numpy import save  # needs arrays in C order

    shapes = {name: Tensor(array.dtype.name, array.shape) for name, array in tensors.items()}
    likely = backbone_with(shapes)
    other = f"skinjob fetch-weights --arch {backbone.name}   # torchvision's own"
    fix = f"{typed_command()} --arch {likely.name}" if likely not in (None, backbone) else other
    backbone.check_tensors(shapes, source, fix)
    image = backbone.preprocessing
    metadata = {
        "architecture": backbone.name,
        "source": source,
        "source_sha256": source_sha256,
        "untrained": json.dumps(kind == "untrained"),
        "licence": licence,
        "resize": str(image.resize),
        "crop": str(image.crop),
        "interpolation": image.interpolation,
        "mean": json.dumps(image.mean),
        "std": json.dumps(image.std),
    }
    if kind == "demo":
        metadata["kind"] = kind
    content = sorted_safetensors(save(dict(tensors), metadata))
    with explain_full_disk(path.parent, len(content), typed_command()):
        with replacing(path) as partial:
            partial.write_bytes(content)
        list_digest(path, hashlib.sha256(content).hexdigest())


def write_demo_weights(
    path: Path, tensors: Mapping[str, NDArray[Any]], backbone: Backbone, source: str
) -> WeightsInfo:
    """Writes a weights file that is marked as pretrained by the demo.

    Its head is zero, because the head of *tensors* has other classes than the backbone's.

    Raises:
        WeightsError: *path* holds fetched weights, or cannot be written.
    """
    head = backbone.head_tensors
    with weights_lock(path.parent):
        if info := find_weights(path, "fetched"):
            raise WeightsError(
                f"{path}: holds fetched weights ({info.source}); the demo does not overwrite them",
                f"mv {shlex.quote(str(path))} ELSEWHERE",
            )
        arrays = {name: np.array(array, order="C") for name, array in tensors.items()}
        arrays |= {name: np.zeros(tensor.shape, tensor.dtype) for name, tensor in head.items()}
        write_weights(path, arrays, backbone, source=source, kind="demo")
    return read_weights_info(path)


def weights_lock(folder: Path) -> AbstractContextManager[bool]:
    """Returns the lock of a weights folder; makes the folder if needed. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_NAME
    words = f"waiting for another fetch-weights or demo (which locks {lock})"
    return locked(lock, tell_waiting=lambda: say(words, is_error=True))


def _fetch(path: Path) -> str:
    """Returns the command that fetches the weights which the name of a file promises."""
    is_other = path.stem in BACKBONES and path.stem != DEFAULT.name
    command = f"skinjob fetch-weights --arch {path.stem}" if is_other else "make fetch-weights"
    return f"{command}   # on a machine with internet; then copy weights/ here"


# --- files that are not weights ---------------------------------------------------------------


def require_no_stand_in(path: Path) -> None:
    """Checks that a file is not a pointer of Git or a web page. Raises: WeightsError."""
    try:
        with path.open("rb") as content:
            head = content.read(512)
    except OSError:  # the reader of the file will raise it
        return
    if kind := pointer_kind(head):
        command = "git lfs pull" if "LFS" in kind else "git annex get ."
        raise WeightsError(
            f"{path}: {kind}, not the weights", f"{command}   # in the clone; then copy it"
        )
    if looks_like_html(head):
        raise WeightsError(f"{path}: an HTML page, not weights", _fetch(path))


def require_no_safetensors(path: Path) -> None:
    """Checks that a file is not a safetensors file. Raises: WeightsError."""
    try:
        tensors, metadata = _read_header(path)
    except WeightsError:
        return
    if "architecture" in metadata:
        raise WeightsError(
            f"{path}: skinjob fetch-weights has already made this file",
            f"skinjob submit --weights {shlex.quote(str(path))}",
        )
    raise _foreign_file(path, tensors)


def _foreign_file(path: Path, names: Iterable[str]) -> WeightsError:
    """Returns the error for a safetensors file of another program; *names* are its tensors."""
    start = f"{path}: a safetensors file of another program"
    known = set().union(*(backbone.tensors for backbone in BACKBONES.values()))
    if unknown := sorted(set(names) - known):
        library = " (Hugging Face's names)" if unknown[-1].startswith(HUGGING_FACE) else ""
        words = f"its {unknown[0]!r:.80} is not a tensor of {', '.join(BACKBONES)}{library}"
        return WeightsError(f"{start}: {words}", _fetch(path))
    program = (
        "import torch; from safetensors.torch import load_file;"
        f' torch.save(load_file({json.dumps(str(path))}), "new.pth")'
    )
    backbone = backbone_with(set(names)) or DEFAULT
    return WeightsError(
        f"{start}, without metadata",
        f"python -c {shlex.quote(program)} && skinjob fetch-weights --arch {backbone.name} "
        "--source new.pth --sha256 $(sha256sum new.pth | cut -c1-64)",
    )


# --- the header -------------------------------------------------------------------------------


def _read_checked_header(path: Path) -> tuple[Backbone, dict[str, str]]:
    """Returns backbone and metadata of a weights file, with "kind" filled in for older files.

    Raises: WeightsError.
    """
    tensors, metadata = _read_header(path)
    if "architecture" not in metadata:
        raise _foreign_file(path, tensors)
    backbone = BACKBONES.get(metadata["architecture"])
    if not backbone:
        words = f"architecture {metadata['architecture']}, {', '.join(BACKBONES)} expected"
        raise WeightsError(f"{path}: {words}", _fetch(path))
    backbone.check_tensors(tensors, str(path), _fetch(path))
    try:
        kind = "fetched" if metadata["untrained"] == "false" else "untrained"
        metadata = {"kind": kind} | metadata
        resize, crop = int(metadata["resize"]), int(metadata["crop"])
        mean, std = _three_numbers(metadata["mean"]), _three_numbers(metadata["std"])
        is_usable = (
            metadata["kind"] in KINDS
            and metadata.keys() >= {"source", "source_sha256"}
            and MIN_CROP <= crop <= MAX_CROP
            and (crop == backbone.preprocessing.crop or not backbone.is_crop_fixed)
            and all(map(math.isfinite, mean))
            and all(0 < deviation < math.inf for deviation in std)
        )
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError):
        is_usable = False
    if not is_usable:
        words = ", ".join(f"{key} {value}" for key, value in metadata.items())
        raise WeightsError(f"{path}: its metadata cannot be used: {words:.500}", _fetch(path))
    preprocessing = dataclasses.replace(
        backbone.preprocessing, resize=resize, crop=crop, mean=mean, std=std
    )
    return dataclasses.replace(backbone, preprocessing=preprocessing), metadata


def _three_numbers(text: str) -> tuple[float, float, float]:
    red, green, blue = json.loads(text)
    return float(red), float(green), float(blue)


def _read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns types and shapes of a safetensors file's tensors, and its metadata."""
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
                f"{path}: a torch file (.pth), but jobs need the safetensors file made from it",
                f"skinjob fetch-weights --source {shlex.quote(str(path))}   # if the name has no "
                "digest, add --sha256",
            ) from error
        raise WeightsError(
            f"{path}: not a safetensors file, or incomplete: {error}", _fetch(path)
        ) from error


# --- SHA256SUMS -------------------------------------------------------------------------------


def listed_digest(path: Path) -> str | None:
    """Returns the digest of *path* in the SHA256SUMS of its folder, None if it has none.

    Raises: WeightsError if SHA256SUMS exists and cannot be read.
    """
    return next((digest for _, name, digest in _sums(path) if name == path.name), None)


def list_digest(path: Path, digest: str) -> None:
    """Writes the line of *path* into the SHA256SUMS of its folder; keeps all other lines."""
    lines = [line for line, name, _ in _sums(path) if name != path.name]
    text = "".join(f"{line}\n" for line in [*lines, f"{digest}  {path.name}"])
    with replacing(path.parent / SUMS_NAME) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def _sums(path: Path) -> list[tuple[str, str, str]]:
    """Returns the lines of the SHA256SUMS beside *path*, as `read_sums`; [] if it is missing."""
    file = path.with_name(SUMS_NAME)
    try:
        return list(read_sums(file.read_text(encoding="utf-8", errors="surrogateescape")))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WeightsError(
            f"{file}: cannot be read: {error.strerror}", f"ls -l {shlex.quote(str(file.parent))}"
        ) from error
