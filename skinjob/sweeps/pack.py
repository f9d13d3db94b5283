"""Packs: the results of a sweep in one tar, which carries its list of digests.

Its only folder is a BagIt bag (RFC 8493), so `sha256sum -c` or any tool for bags checks it:

    SWEEP/bagit.txt  bag-info.txt  manifest-sha256.txt  tagmanifest-sha256.txt
    SWEEP/data/runs/SWEEP/         the sweep, without checkpoints and without submission/
"""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from skinjob import __version__
from skinjob.console import printable, progress
from skinjob.data.images import explain
from skinjob.data.store import Store, open_store
from skinjob.errors import ImagesError, RunError, SkinjobError
from skinjob.files import read_sums, replacing
from skinjob.sweeps.layout import PACK_MARK, Sweep
from skinjob.sweeps.lease import parse_utc

DECLARATION, ABOUT = PACK_MARK, "bag-info.txt"
MANIFEST, TAG_MANIFEST = "manifest-sha256.txt", "tagmanifest-sha256.txt"
PAYLOAD = "data/runs"
MISSING = "is missing"
AGAIN = "skinjob pack SWEEP   # where the sweep is; then copy it again"


def pack_sweep(sweep: Sweep, file: Path) -> int:
    """Writes the pack of a sweep in a single step, and returns the number of its files.

    Equal sweeps give equal bytes: names are sorted, and all times are that of the sweep's last
    change. A file that a job replaces meanwhile is packed as it was, or as it is then.

    Raises: RunError if *file* exists or the sweep cannot be read; OSError.
    """
    if file.exists():
        fix = f"rm {shlex.quote(str(file))}   # or choose another --out"
        raise RunError(f"{file} exists", fix)
    changed = _last_change(sweep)
    with replacing(file) as partial, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, content: bytes) -> tuple[str, int]:
            entry = tarfile.TarInfo(f"{sweep.name}/{name}")  # by default of no user, and 0644
            entry.size, entry.mtime = len(content), int(parse_utc(changed).timestamp())
            tar.addfile(entry, io.BytesIO(content))
            return hashlib.sha256(content).hexdigest(), len(content)

        declaration = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
        tags = {DECLARATION: add(DECLARATION, declaration.encode())}
        payload = {
            f"{PAYLOAD}/{sweep.name}/{name}": source for name, source in sorted(_results(sweep))
        }
        listed = {name: add(name, source.read_bytes()) for name, source in payload.items()}
        about = {
            "Bag-Software-Agent": f"skinjob {__version__}",
            "Bagging-Date": changed[:10],
            "External-Identifier": sweep.name,
            "Payload-Oxum": f"{sum(size for _, size in listed.values())}.{len(listed)}",
        }
        lines = "".join(f"{label}: {value}\n" for label, value in about.items())
        tags[ABOUT] = add(ABOUT, lines.encode())
        tags[MANIFEST] = add(MANIFEST, _manifest(listed))
        add(TAG_MANIFEST, _manifest(tags))
    return len(listed)


def _results(sweep: Sweep) -> Iterator[tuple[str, Path]]:
    """Yields the sweep's files that are packed, with their names in its folder."""
    checkpoints = {file.name for run in sweep.runs() for file in run.checkpoint_files}
    for path in sweep.folder.rglob("*"):
        parts = path.relative_to(sweep.folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        is_private = parts[0] == sweep.submission_folder.name or path.name in checkpoints
        is_private |= path.suffix == ".claim"  # host and process of a job
        if path.is_file() and not path.is_symlink() and not is_hidden and not is_private:
            yield "/".join(parts), path


def _last_change(sweep: Sweep) -> str:
    """Returns the time of the newest heartbeat or submit of a run."""
    times = ["1980-01-01T00:00:00Z"]
    for run in sweep.runs():
        with suppress(RunError):  # a damaged state is packed as it is
            state = run.state()
            times += filter(None, (state.queued_utc, state.heartbeat_utc))
    return max(times)


def _manifest(digests: Mapping[str, tuple[str, int]]) -> bytes:
    """Returns the lines of sha256sum; the RFC has % and line breaks in names escaped."""
    escape = str.maketrans({"%": "%25", "\n": "%0A", "\r": "%0D"})
    lines = [f"{sha256}  {name.translate(escape)}\n" for name, (sha256, _) in digests.items()]
    return "".join(lines).encode()


def is_pack(path: Path) -> bool:
    """Says whether a path may be a pack: any file, or a folder with bagit.txt."""
    return path.is_file() or (path / DECLARATION).is_file()


def compare_pack(path: Path) -> tuple[int, list[str]]:
    """Returns the number of files in a pack's lists, and a line for each fault.

    *path* is the tar, or the folder from it. Raises: RunError if it is no pack.
    """
    store, faults = _open(path), list[str]()
    tags, listed = _listed(store, TAG_MANIFEST, faults), _listed(store, MANIFEST, faults)

    def digest(file: Path) -> str:
        return hashlib.sha256(store.read(file.relative_to(path).as_posix())).hexdigest()

    faults += compare({path / name: sha256 for name, sha256 in (tags | listed).items()}, digest)
    others = set(_payload(store)) - set(listed)
    faults += [printable(f"{path / name}: is not in {MANIFEST}") for name in sorted(others)]
    return len(tags | listed), faults


def compare(listed: Mapping[Path, str], digest: Callable[[Path], str]) -> list[str]:
    """Returns a line for each file that is missing or has another digest than the listed one."""
    faults = []
    with progress("comparing", len(listed)) as show:
        for number, (file, sha256) in enumerate(listed.items(), 1):
            try:
                fault = "" if digest(file) == sha256 else "not as packed"
            except FileNotFoundError:
                fault = MISSING
            except (OSError, ValueError) as error:  # ValueError: a list with an absolute path
                fault = explain(error)
            faults += [f"{printable(str(file))}: {fault}"] if fault else []
            show(number)
    return faults


def _open(path: Path) -> Store:
    try:
        store = open_store(path, marks=(DECLARATION,))
        if b"BagIt-Version: " not in store.read(DECLARATION):
            raise FileNotFoundError
        return store
    except OSError:
        raise RunError(f"{path}: not a pack: no {DECLARATION} in it", AGAIN) from None
    except ImagesError as error:
        raise RunError(error.message, AGAIN) from None


def _listed(store: Store, name: str, faults: list[str]) -> dict[str, str]:
    """Returns the digests in a manifest by name; adds to *faults* if it cannot be read."""
    try:
        sums = list(read_sums(store.read(name).decode()))
    except (OSError, ValueError) as error:
        faults.append(printable(f"{store.root / name}: {error}"))
        return {}
    if not all(file for _, file, _ in sums):
        faults.append(printable(f"{store.root / name}: has a line that is no digest"))
    codes = {"25": "%", "0A": "\n", "0D": "\r"}
    return {
        re.sub("%(25|0A|0D)", lambda code: codes[code[1]], file): digest
        for _, file, digest in sums
        if file
    }


def _payload(store: Store) -> Iterator[str]:
    for folder, _, files in store.walk(store.root / "data", lambda _: None):
        for name in files:
            yield (Path(folder) / name).relative_to(store.root).as_posix()


def open_pack(path: Path) -> Sweep:
    """Returns the sweep in a pack: in its folder, or in the folder to which its tar is unpacked.

    What is read is compared with its lists first. A tar is unpacked beside itself, once, in a
    single step.

    Raises: RunError if it is no pack or not as packed, or another folder is in the way; OSError.
    """
    _require_as_packed(path)
    if path.is_file():
        path = _unpack(path)
    sweeps = [file.parent for file in path.glob(f"{PAYLOAD}/*/sweep.json")]
    if len(sweeps) != 1:
        raise RunError(f"{path}: {len(sweeps)} sweeps in {PAYLOAD}/, not one", AGAIN)
    return Sweep(sweeps[0])


def _require_as_packed(path: Path) -> None:
    if faults := compare_pack(path)[1]:
        raise RunError(f"{path}: not as packed", f"skinjob verify {shlex.quote(str(path))}", faults)


def _unpack(file: Path) -> Path:
    store = _open(file)
    names = [*_listed(store, TAG_MANIFEST, []), TAG_MANIFEST, *_payload(store)]
    is_tar = file.suffix == ".tar"
    folder = file.with_suffix("") if is_tar else file.with_name(f"{file.name}-unpacked")
    if folder.exists():
        words, faults = "is in the way: it is not this pack", list[str]()
        with suppress(OSError, SkinjobError):
            if (folder / TAG_MANIFEST).read_bytes() == store.read(TAG_MANIFEST):
                words, faults = "has changed since it was unpacked", compare_pack(folder)[1]
                if not faults:
                    return folder
        fix = f"mv {shlex.quote(str(folder))} {shlex.quote(f'{folder}-2')}"
        raise RunError(f"{folder} {words}", fix, faults)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=file.parent))
    try:
        for name in dict.fromkeys(names):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(store.read(name))
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
