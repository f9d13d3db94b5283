"""The pretrained weights as one safetensors file: fetched, checked, and known again later.

    weights/resnet18.safetensors   102 to 122 tensors; its metadata tells where they come from
    weights/SHA256SUMS             for `sha256sum -c SHA256SUMS`, which needs no Python

While a fetch runs, the folder also has hidden files: `.fetch.lock` (empty, stays) and
`.resnet18-<8 digits>.pth.part`, which a broken fetch goes on from and a complete one removes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skinjob.download import (
    download,
    explaining_full_disk,
    looks_like_html,
    one_at_a_time,
)
from skinjob.errors import WeightsError
from skinjob.files import replacing, sha256_file, sorted_safetensors
from skinjob.weights.backbones import (
    ARCHITECTURE,
    COUNTER,
    PREPROCESSING,
    Preprocessing,
    Tensor,
    check_layout,
    layout,
)
from skinjob.weights.kinds import (
    FETCH,
    require_no_safetensors,
    require_no_stand_in,
    require_no_torch_file,
    strange_safetensors,
)
from skinjob.weights.source import Source, find_source
from skinjob.weights.statedict import read_state_dict
from skinjob.weights.sums import SUMS_NAME, promise_digest, promised_digest

WEIGHTS_FOLDER = Path("weights")
WEIGHTS_NAME = "resnet18.safetensors"
LOCK_NAME = ".fetch.lock"

PUBLISHED_LICENCE = (
    "torchvision's code is BSD-3-Clause; these weights were trained on ImageNet, whose terms of"
    " access allow non-commercial research and education, and torchvision leaves it to each user"
    " to find out whether a use is allowed"
)
UNKNOWN_LICENCE = "not known: this is not the file that torchvision publishes; ask who made it"
UNTRAINED_LICENCE = "none needed: random numbers"
DEMO_LICENCE = "none needed: pretrained by skinjob on shapes that it drew"
LEAST_CROP, MOST_CROP = 32, 512  # pixels; ResNet18 halves a picture five times
KINDS = ("fetched", "demo", "untrained")

_DTYPES = {"F32": "float32", "I64": "int64"}  # safetensors' names


@dataclass(frozen=True)
class Fetched:
    """What `fetch_weights` leaves: the file, its digest, and whether it was there before."""

    path: Path
    sha256: str
    size_bytes: int
    source: str
    already: bool

    @property
    def sums(self) -> Path:
        return self.path.with_name(SUMS_NAME)

    @property
    def scp_line(self) -> str:
        """The command that carries the file and its digest to the cluster, but for its name."""
        files = shlex.join([str(self.path), str(self.sums)])
        return f"scp {files} USER@LOGIN_NODE:skinjob/weights/"


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself, after its digest and its tensors were checked."""

    path: Path
    sha256: str
    size_bytes: int
    architecture: str
    source: str
    source_sha256: str  # of the .pth; empty when it was not fetched
    kind: str  # one of KINDS; demo: pretrained by `skinjob demo` on drawn shapes
    licence: str
    preprocessing: Preprocessing
    listed: bool  # whether SHA256SUMS beside it names this digest; False: there is no such line

    @property
    def untrained(self) -> bool:
        return self.kind == "untrained"

    @property
    def note(self) -> str:
        """What a line that names the file goes on with."""
        notes = {"demo": "  demo: pretrained on drawn shapes", "untrained": "  untrained: random"}
        return notes.get(self.kind, "")


def fetch_weights(out: Path, source: str | None = None, sha256: str | None = None) -> Fetched:
    """Makes out/resnet18.safetensors from a published .pth, unless it is there already.

    *source* is an http(s) address or a file (only read), None for torchvision's own; it is held
    to *sha256* (64 hex digits) and to the 8 digits that its name carries. Writes SHA256SUMS.
    Until all is checked nothing is under the final name but what was there before.

    Raises:
        WeightsError: whatever keeps the file from being had, or from being what was asked for.
    """
    again = _command(out, source, sha256)
    if source and "://" not in source:
        require_no_stand_in(Path(source))
        require_no_safetensors(Path(source))
    wanted = find_source(source, sha256, again)
    target = out / WEIGHTS_NAME
    if info := _had_already(target, wanted):
        return _fetched(info, already=True)
    with one_at_a_time(out / LOCK_NAME, again):
        if info := _had_already(target, wanted):  # the one that held the lock has just made it
            return _fetched(info, already=True)
        for abandoned in out.glob(f".{WEIGHTS_NAME}.*.part"):  # by a writer that was killed
            abandoned.unlink()
        _bring(wanted, target)
        return _fetched(read_weights_info(target), already=False)


def read_weights_info(path: Path) -> WeightsInfo:
    """Returns what *path* says of itself; reads its header, and all of it once for the digest.

    Raises:
        WeightsError: it is missing, is not what SHA256SUMS beside it promises, is no safetensors
            file that `skinjob fetch-weights` wrote, or holds another architecture.
    """
    require_no_stand_in(path)
    digest, size_bytes = _digest_and_size(path)
    promised = promised_digest(path)
    if promised not in (None, digest):
        raise WeightsError(
            f"{path}: damaged: its SHA-256 is {digest}, {SUMS_NAME} says {promised}", FETCH
        )
    return _checked_info(path, digest, size_bytes, listed=promised is not None)


def _checked_info(path: Path, digest: str, size_bytes: int, *, listed: bool) -> WeightsInfo:
    """Returns what the header says, once it is that of a ResNet18 that we wrote."""
    require_no_torch_file(path)
    tensors, metadata = _read_header(path)
    if "architecture" not in metadata:
        raise strange_safetensors(path, tensors)
    architecture = metadata["architecture"]
    if architecture != ARCHITECTURE:
        raise WeightsError(f"{path}: architecture {architecture}, {ARCHITECTURE} expected", FETCH)
    check_layout(tensors, str(path), FETCH)
    try:
        return WeightsInfo(
            path=path,
            sha256=digest,
            size_bytes=size_bytes,
            architecture=architecture,
            source=metadata["source"],
            source_sha256=metadata["source_sha256"],
            kind=_kind(metadata),
            licence=metadata["licence"],
            preprocessing=_parse_preprocessing(metadata),
            listed=listed,
        )
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise _garbled(path, error) from error


def _garbled(path: Path, fault: Exception) -> WeightsError:
    return WeightsError(f"{path}: its metadata lacks or garbles {fault!s:.200}", FETCH)


def read_preprocessing(path: Path) -> Preprocessing:
    """Returns how the backbone in *path* wants its images; reads the file's header.

    Raises:
        WeightsError: there is no such header.
    """
    try:
        return _parse_preprocessing(_read_header(path)[1])
    except (LookupError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise _garbled(path, error) from error


def find_demo_weights(path: Path) -> WeightsInfo | None:
    """Returns what *path* says of itself if an earlier demo pretrained it and it is sound."""
    info = _sound(path)
    return info if info and info.listed and info.kind == "demo" else None


def write_demo_weights(
    path: Path, tensors: Mapping[str, NDArray[Any]], preprocessing: Preprocessing, source: str
) -> WeightsInfo:
    """Makes *path* a ResNet18 of *tensors*, marked as pretrained by the demo.

    Their head is not kept: it has other classes than the layout wants. Adds the digest to
    SHA256SUMS beside it.

    Raises:
        WeightsError: *path* holds fetched weights, or cannot be written.
    """
    with one_at_a_time(path.parent / LOCK_NAME, "skinjob demo"):
        _require_not_fetched(path)
        backbone = {
            name: np.array(array, order="C")  # safetensors writes memory as it lies
            for name, array in tensors.items()
            if not name.startswith("fc.")
        }
        head = {
            name: np.zeros(layout()[name].shape, "float32") for name in ("fc.weight", "fc.bias")
        }
        check_layout(_described(backbone | head), source, "skinjob demo")
        metadata = _metadata(source, "", DEMO_LICENCE, preprocessing, kind="demo")
        _install(path, backbone | head, metadata, "skinjob demo")
    return read_weights_info(path)


def write_untrained(path: Path, seed: int = 0) -> WeightsInfo:
    """Makes *path* a ResNet18 of random numbers that says so, for trying things out offline.

    Convolutions are drawn as He et al., "Delving Deep into Rectifiers" (2015), by fan-out, as
    torchvision does. Adds its digest to SHA256SUMS beside it.

    Raises:
        WeightsError: *path* holds fetched weights, or cannot be written.
    """
    again = "skinjob demo"
    with one_at_a_time(path.parent / LOCK_NAME, again):
        _require_not_fetched(path)
        source = f"untrained (random numbers, seed {seed})"
        metadata = _metadata(source, "", UNTRAINED_LICENCE, kind="untrained")
        _install(path, _random_tensors(seed), metadata, again)
    return read_weights_info(path)


def _require_not_fetched(path: Path) -> None:
    if (info := _sound(path)) and info.kind == "fetched":
        raise WeightsError(
            f"{path}: holds trained weights ({info.source}), which the demo's do not replace",
            f"mv {shlex.quote(str(path))} ELSEWHERE",
        )


# --- fetching ---------------------------------------------------------------------------------


def _command(out: Path, source: str | None, sha256: str | None) -> str:
    words = ["skinjob", "fetch-weights"]
    words += ["--source", source] if source else []
    words += ["--sha256", sha256] if sha256 else []
    words += ["--out", str(out)] if out != WEIGHTS_FOLDER else []
    return shlex.join(words)


def _had_already(target: Path, wanted: Source) -> WeightsInfo | None:
    """Returns what is known of *target* when it is sound and came from *wanted*, else None."""
    info = _sound(target)
    if info and info.listed and info.source_sha256.startswith(wanted.digest):
        return info
    return None


def _sound(path: Path) -> WeightsInfo | None:
    try:
        return read_weights_info(path)
    except WeightsError:  # missing or damaged: it will be made anew
        return None


def _fetched(info: WeightsInfo, *, already: bool) -> Fetched:
    return Fetched(info.path, info.sha256, info.size_bytes, info.source, already)


def _bring(wanted: Source, target: Path) -> None:
    """Writes *target* from the source, once its digest and every tensor have been checked."""
    pth = _download(wanted, target.parent) if wanted.is_url else _local_file(wanted)
    try:
        tensors = read_state_dict(pth)
        _check_tensors(tensors, wanted)
    except WeightsError:
        if wanted.is_url:  # what was asked for, and no use
            pth.unlink()
        raise
    licence = PUBLISHED_LICENCE if wanted.published else UNKNOWN_LICENCE
    metadata = _metadata(wanted.public, sha256_file(pth), licence, kind="fetched")
    _install(target, tensors, metadata, wanted.command)
    if wanted.is_url:
        pth.unlink()


def _download(wanted: Source, folder: Path) -> Path:
    """Returns the downloaded file in *folder*, its digest checked; a wrong one is not kept."""
    partial = folder / f".resnet18-{wanted.digest[:8]}.pth.part"
    resumed = partial.exists()
    if not resumed or _digest_fault(partial, wanted):
        download(wanted.location, partial, expected_size=wanted.size_bytes, again=wanted.command)
    fault = _digest_fault(partial, wanted)
    if fault and resumed:  # the bytes that lay here may be the bad ones: once more from the first
        partial.unlink()
        return _download(wanted, folder)
    if fault:
        partial.unlink()
        raise WeightsError(f"{wanted.location}: {fault}", wanted.command)
    return partial


def _local_file(wanted: Source) -> Path:
    path = Path(wanted.location)
    try:
        fault = _digest_fault(path, wanted)
    except OSError as error:
        raise WeightsError(
            f"--source {path}: {error.strerror}", "skinjob fetch-weights --source FILE"
        ) from error
    if fault:
        raise WeightsError(f"--source {path}: {fault}", "skinjob fetch-weights   # downloads it")
    return path


def _digest_fault(path: Path, wanted: Source) -> str:
    """Returns what is wrong with a file's digest in words; nothing when it is as promised."""
    found = sha256_file(path)
    if found.startswith(wanted.digest):
        return ""
    with path.open("rb") as content:
        head = content.read(512)
    if looks_like_html(head):
        return "an HTML page, not weights"
    size_bytes = path.stat().st_size
    if wanted.size_bytes and size_bytes != wanted.size_bytes:
        return f"{size_bytes:,} bytes, {wanted.size_bytes:,} expected: cut off, or another file"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"cut off: its end is missing ({size_bytes:,} bytes)"
    return f"damaged, or another file: its SHA-256 is {found}, {wanted.digest} promised"


def _check_tensors(tensors: Mapping[str, NDArray[Any]], wanted: Source) -> None:
    check_layout(
        _described(tensors), wanted.location, "skinjob fetch-weights   # torchvision's own"
    )


def _described(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: Tensor(array.dtype.name, array.shape) for name, array in tensors.items()}


# --- the file ---------------------------------------------------------------------------------


def _metadata(
    source: str,
    source_sha256: str,
    licence: str,
    preprocessing: Preprocessing = PREPROCESSING,
    *,
    kind: str,
) -> dict[str, str]:
    """Returns what travels in the file's header: texts only, lists as JSON.

    The key "kind" came later than "untrained" and is written for the demo alone: the same weights,
    fetched again, shall have the same digest.
    """
    return (
        {
            "architecture": ARCHITECTURE,
            "source": source,
            "source_sha256": source_sha256,
            "untrained": json.dumps(kind == "untrained"),
            "licence": licence,
        }
        | ({"kind": kind} if kind == "demo" else {})
        | {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in dataclasses.asdict(preprocessing).items()
        }
    )


def _kind(metadata: Mapping[str, str]) -> str:
    kind = "fetched" if metadata["untrained"] == "false" else "untrained"
    kind = metadata.get("kind", kind)
    if kind not in KINDS:
        raise ValueError(f"kind {kind}")
    return kind


def _parse_preprocessing(metadata: Mapping[str, str]) -> Preprocessing:
    preprocessing = Preprocessing(
        resize=int(metadata["resize"]),
        crop=int(metadata["crop"]),
        interpolation=metadata["interpolation"],
        mean=_three_numbers(metadata["mean"]),
        std=_three_numbers(metadata["std"]),
    )
    if not LEAST_CROP <= preprocessing.crop <= MOST_CROP:
        raise ValueError(f"crop {preprocessing.crop}: {LEAST_CROP} to {MOST_CROP} pixels expected")
    if not all(map(math.isfinite, preprocessing.mean)) or not all(
        0 < deviation < math.inf for deviation in preprocessing.std
    ):
        raise ValueError(f"mean {preprocessing.mean}, std {preprocessing.std}")
    return preprocessing


def _three_numbers(text: str) -> tuple[float, float, float]:
    red, green, blue = json.loads(text)
    return float(red), float(green), float(blue)


def _install(
    target: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], again: str
) -> None:
    """Replaces *target* by a safetensors file of *tensors*, and its line in SHA256SUMS."""
    from safetensors.numpy import save

    content = sorted_safetensors(save(dict(tensors), dict(metadata)))
    with explaining_full_disk(target.parent, len(content), again):
        with replacing(target) as partial:
            partial.write_bytes(content)
        promise_digest(target, hashlib.sha256(content).hexdigest())


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
    except SafetensorError as error:
        raise WeightsError(f"{path}: no safetensors file, or cut off: {error}", FETCH) from error


def _digest_and_size(path: Path) -> tuple[str, int]:
    try:
        return sha256_file(path), path.stat().st_size
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file", FETCH) from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}", FETCH) from error


# --- untrained --------------------------------------------------------------------------------


def _random_tensors(seed: int) -> dict[str, NDArray[Any]]:
    """Returns ResNet18's 102 tensors at their starting values, float32; the same for one seed."""
    numbers = np.random.default_rng(seed)
    return {
        name: _starting_values(name, tensor.shape, numbers)
        for name, tensor in layout().items()
        if not name.endswith(COUNTER)
    }


def _starting_values(
    name: str, shape: tuple[int, ...], numbers: np.random.Generator
) -> NDArray[np.float32]:
    if len(shape) == 4:  # a convolution: (out, in, height, width)
        fan_out = shape[0] * shape[2] * shape[3]
        values = numbers.normal(0, math.sqrt(2 / fan_out), shape)
    elif name.startswith("fc."):
        values = numbers.uniform(-1 / math.sqrt(512), 1 / math.sqrt(512), shape)
    else:  # a batch norm that changes nothing
        values = np.full(shape, 1.0 if name.endswith((".weight", ".running_var")) else 0.0)
    return values.astype(np.float32)
