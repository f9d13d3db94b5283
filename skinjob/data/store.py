"""Where image files are: in a folder, or in a zip or a plain tar, which is read in place.

Nothing is extracted from an archive. Its members are known by its index, and read by their offsets,
so any number of threads can read at the same time. An archive with a member that could mean another
file than its name says is refused as a whole.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from skinjob.console import printable
from skinjob.errors import ImagesError
from skinjob.words import list_first

FOLDERS = ("train", "test")
"""The folders of a data set. Each has a folder for each class, and is the split of this name, but
for the training images in val."""
MAX_BYTES = 2**30  # of a file
KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd --rm",
}
"""The first bytes of a compressed file, and the command that replaces it by what is in it."""
PACK = "skinjob pack-images FOLDER   # where the images are; makes a zip that can be read"

LOCAL_HEADER_BYTES = 30  # of a zip's member, before its name
ENCRYPTED = 0x01 | 0x40  # flags of a zip's member
IS_UTF8 = 0x800
TAR_BLOCK = 512

Level = tuple[str, list[str], list[str]]
"""A folder and the names of the folders and files in it, as os.walk yields them."""


class Store(Protocol):
    """The files of a data set. Paths below the root are relative, with forward slashes."""

    root: Path

    def walk(self, folder: Path, onerror: Callable[[OSError], None]) -> Iterator[Level]:
        """Yields a folder and those below it, as os.walk does; links to folders are followed."""

    def read(self, path: str) -> bytes:
        """Returns a file's bytes. Raises: OSError, also for what is too large for an image."""

    def look(self, path: str = "") -> str:
        """Returns a shell command that shows a file, by default what is in the store."""


def open_store(root: Path, marks: Collection[str] = FOLDERS) -> Store:
    """Returns the files in a folder or an archive; a path that does not exist counts as a folder.

    If an archive has a single folder around all of its files, and one of *marks* is in it, this
    folder is the root.

    Raises: ImagesError if *root* is a file that cannot be read in place.
    """
    try:
        if stat.S_ISREG(root.stat().st_mode):
            return ArchiveStore(root, marks)
    except FileNotFoundError:
        pass
    except OSError as error:
        words = f"{printable(str(root))}: {error.strerror}"
        raise ImagesError(words, f"ls -ld {quoted(root)}") from None
    return FolderStore(root)


class FolderStore:
    """The files in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def walk(self, folder: Path, onerror: Callable[[OSError], None]) -> Iterator[Level]:
        return os.walk(folder, followlinks=True, onerror=onerror)

    def read(self, path: str) -> bytes:
        file = self.root / path
        info = file.stat()  # first: opening a pipe would wait until another process writes to it
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"a {KINDS.get(stat.S_IFMT(info.st_mode), 'device')}, not a file")
        _require_size(info.st_size)
        return file.read_bytes()

    def look(self, path: str = "") -> str:
        return f"ls -l {quoted(self.root / path)}" if path else f"ls {quoted(self.root)}/*"


class Member(NamedTuple):
    """A file in an archive."""

    offset: int
    """Of its content in a tar, of the header before its content in a zip."""
    size: int
    packed_size: int
    crc: int | None
    """None in a tar, which has no checksum of content."""
    is_deflated: bool = False


class ArchiveStore:
    """The files in a zip or a plain tar."""

    def __init__(self, root: Path, marks: Collection[str] = FOLDERS) -> None:
        """Opens an archive and reads its index.

        Raises: ImagesError if it is cut off or compressed as a whole, or has a member that is not a
        plain file, has no plain name, or cannot be read in place; OSError.
        """
        self.root = root
        self._handle = os.open(root, os.O_RDONLY)
        self._stamp = _stamp(self._handle)
        kind = _kind(root, os.pread(self._handle, 262, 0))
        self.is_zip = kind == "zip"
        try:
            with open(self._handle, "rb", closefd=False) as file:
                members = list(_zip_members(file) if self.is_zip else _tar_members(file))
        except Exception as error:  # the libraries raise all kinds for a damaged archive
            words = f"{printable(str(root))}: not a whole {kind}: {printable(str(error))}"
            raise ImagesError(words, f"ls -l {quoted(root)}   # its size; copy it again") from None
        self._members: dict[str, Member] = {}
        self._folders: dict[str, tuple[dict[str, None], list[str]]] = {"": ({}, [])}
        self._add(members)
        self._marks = marks
        self._top = self._common_folder()

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[Path, Collection[str]]]:
        """Another process opens the archive again."""
        return open_store, (self.root, self._marks)

    def walk(self, folder: Path, onerror: Callable[[OSError], None]) -> Iterator[Level]:
        below = folder.relative_to(self.root).as_posix() if folder != self.root else ""
        level = self._folders.get((self._top + below).rstrip("/"))
        if level is None:
            onerror(FileNotFoundError(errno.ENOENT, "no such folder", str(folder)))
            return
        folders = list(level[0])
        yield str(folder), folders, list(level[1])
        for name in folders:  # the caller may have removed some
            yield from self.walk(folder / name, onerror)

    def read(self, path: str) -> bytes:
        """Returns a file's bytes; a zip's checksum is compared."""
        member = self._members.get(self._top + path)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "no such file in the archive", path)
        _require_size(max(member.size, member.packed_size))
        if _stamp(self._handle) != self._stamp:
            raise OSError("the archive has changed since it was opened")
        offset = member.offset
        if self.is_zip:
            header = os.pread(self._handle, LOCAL_HEADER_BYTES, offset)
            if not header.startswith(b"PK\x03\x04") or len(header) < LOCAL_HEADER_BYTES:
                raise OSError("damaged in the archive: no header where the index says")
            lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            offset += LOCAL_HEADER_BYTES + sum(lengths)  # of its name, and of extra fields
        content = os.pread(self._handle, member.packed_size, offset)
        try:
            if member.is_deflated:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.size + 1)
        except zlib.error as error:
            raise OSError(f"damaged in the archive: {error}") from None
        if len(content) != member.size:
            raise OSError("damaged in the archive: its size is not that in the index")
        if member.crc is not None and zlib.crc32(content) != member.crc:
            raise OSError("damaged in the archive: its checksum is not that in the index")
        return content

    def look(self, path: str = "") -> str:
        command = "python3 -m zipfile -l" if self.is_zip else "tar -tvf"
        return f"{command} {quoted(self.root)}"

    def size(self, path: str) -> int | None:
        """Returns the bytes of a file by the index; None if it is not there."""
        member = self._members.get(self._top + path)
        return member.size if member else None

    def _add(self, members: Iterable[tuple[str, Member | str | None]]) -> None:
        """Takes over the index. Raises: ImagesError with the members that cannot be accepted."""
        bad = []
        for name, member in members:
            parts = [part for part in name.split("/") if part not in ("", ".")]
            path = "/".join(parts)
            fault = member if isinstance(member, str) else _fault_of_name(name, parts)
            if not fault and member is not None and not path:
                fault = "has no name"
            if not fault and (path in self._members or (member and path in self._folders)):
                fault = "is there twice"
            if not fault:
                fault = self._add_folders(parts if member is None else parts[:-1])
            if fault:
                bad.append(f"{printable(name)} {fault}")
            elif isinstance(member, Member):
                self._members[path] = member
                self._folders["/".join(parts[:-1])][1].append(parts[-1])
        packed = sum(member.packed_size for member in self._members.values())
        if packed > self._stamp[0]:
            bad.append("its members overlap")
        if bad:
            raise ImagesError(f"{printable(str(self.root))}: {list_first(bad, 3)}", PACK, bad)

    def _add_folders(self, parts: list[str]) -> str:
        """Adds a folder and its parents; returns what is wrong with one, or ''."""
        parent = ""
        for name in parts:
            path = f"{parent}/{name}".lstrip("/")
            if path in self._members:
                return "is below a file"
            self._folders[parent][0][name] = None
            self._folders.setdefault(path, ({}, []))
            parent = path
        return ""

    def _common_folder(self) -> str:
        """Returns the single folder with one of the marks in it, as "name/"; else ''."""
        tops = [n for n in self._folders[""][0] if not n.startswith(".") and n != "__MACOSX"]
        folders, files = self._folders[tops[0]] if len(tops) == 1 else ({}, [])
        return f"{tops[0]}/" if {*self._marks} & {*folders, *files} else ""


def _zip_members(file: BinaryIO) -> Iterator[tuple[str, Member | str | None]]:
    """Yields name and place of each member; None for a folder, a sentence's end for a bad one."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.orig_filename  # zipfile cuts the other one off at a NUL
            if not info.flag_bits & IS_UTF8:
                name = _decoded(name.encode("cp437"))
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                yield name, "is a link" if mode == stat.S_IFLNK else "is not a file"
            elif info.flag_bits & ENCRYPTED:
                yield name, "is encrypted"
            elif name.endswith("/"):
                yield name, None
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                yield name, f"is packed by method {info.compress_type}: not stored or deflated"
            else:
                is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
                sizes = info.file_size, info.compress_size
                yield name, Member(info.header_offset, *sizes, info.CRC, is_deflated)


def _decoded(name: bytes) -> str:
    """Returns a name that a zip does not mark as UTF-8, as it is on most systems all the same."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")  # as the format says


def _tar_members(file: BinaryIO) -> Iterator[tuple[str, Member | str | None]]:
    """Yields as `_zip_members`. Raises: ValueError if the tar is cut off."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            if info.isdir():
                yield info.name, None
            elif info.issparse():
                yield info.name, "is a sparse file"
            elif info.isreg():
                yield info.name, Member(info.offset_data, info.size, info.size, None)
            else:
                yield info.name, "is a link" if info.islnk() or info.issym() else "is not a file"
        end = archive.offset
    if os.pread(file.fileno(), TAR_BLOCK, end) != bytes(TAR_BLOCK):
        raise ValueError("its end is missing")  # tarfile stops without a word at a damaged header


def _fault_of_name(name: str, parts: list[str]) -> str:
    """Returns why a member's name is no plain path below the root; '' if it is."""
    if name.startswith("/"):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of the archive"
    if "\\" in name:
        return "has a backslash in its name"
    return "has a NUL byte in its name" if "\0" in name else ""


def _stamp(handle: int) -> tuple[int, int]:
    info = os.fstat(handle)
    return info.st_size, info.st_mtime_ns


def _kind(root: Path, head: bytes) -> str:
    """Returns zip or tar, by the first 262 bytes of a file. Raises: ImagesError for other files."""
    for start, command in COMPRESSED.items():
        if head.startswith(start):
            raise _compressed(root, command)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[257:] == b"ustar" or root.suffix.lower() == ".tar":
        return "tar"
    words = f"{printable(str(root))}: not a folder, a zip or a tar"
    raise ImagesError(words, f"ls -l {quoted(root)}; {PACK}")


def _compressed(root: Path, command: str) -> ImagesError:
    words = f"{printable(str(root))}: compressed as a whole, so no image can be read by itself"
    tar = root.with_suffix(".tar" if root.suffix in (".tgz", ".tbz2", ".txz") else "")
    return ImagesError(words, f"{command} {quoted(root)} && skinjob submit --data {quoted(tar)}")


def _require_size(num_bytes: int) -> None:
    """Raises: OSError if a file is too large for an image."""
    if num_bytes > MAX_BYTES:
        raise OSError(f"{num_bytes:,} bytes, but at most {MAX_BYTES:,} are read")


def quoted(path: Path) -> str:
    """Returns a path for a shell command, with the characters escaped that do not print."""
    return printable(shlex.quote(str(path)))
