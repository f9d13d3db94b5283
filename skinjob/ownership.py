"""Whose a file is, and who could put another in its place.

Jobs execute pickles from a sweep's folder and compiled code from the cache. Whoever can write
there, or can rename a folder on the way there, can run code as the user.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import shlex
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from skinjob.errors import RunError
from skinjob.files import absolute

ROOT = 0
NAMELESS = "user "
ACL = "system.posix_acl_access"
ACL_ENTRY = struct.Struct("<HHI")  # tag, permissions, id: linux/posix_acl_xattr.h
ACL_USER, ACL_OWNING_GROUP, ACL_GROUP = 0x02, 0x04, 0x08
ACL_WRITE = 0x02


def owner(path: Path) -> str | None:
    """Returns the name of the user that a file belongs to; None for the user's own.

    A link of the user's to a file of another user is not the user's own.

    Raises: OSError when it cannot be seen.
    """
    for number in (path.lstat().st_uid, path.stat().st_uid):
        if number != os.geteuid():
            return user_name(number)
    return None


def user_name(number: int) -> str:
    """Returns a user's name, or the number where there is no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"{NAMELESS}{number}"


def make_private(folder: Path) -> None:
    """Makes a folder, if it is not there, that nobody but the user can put files into.

    Raises: RunError when it belongs to another user, or others may write to it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    require_private(folder)


def require_private(folder: Path) -> None:
    """Returns when nobody but the user can put files into a folder.

    Raises: RunError when it belongs to another user, is a link, or others may write to it.
    """
    seen = folder.lstat()
    is_own = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid()
    if not is_own or seen.st_mode & 0o022:  # with an ACL the group's bits are its mask
        raise RunError(
            f"{folder} is not a private folder of yours", f"ls -ld {shlex.quote(str(folder))}"
        )


def require_safe(folder: Path, trusted: Collection[str] = ()) -> None:
    """Returns when no stranger can put another folder in the place of this one.

    Root, the user's own groups and the users named in *trusted* are no strangers. The folder, or
    the last part of its path, need not be there yet. A sticky bit, as /tmp has it, keeps others
    from renaming what is not theirs.

    Raises: RunError that names the first place on the way where a stranger can.
    """
    ways = (absolute(folder), folder.resolve())  # a link on the way can be replaced too
    for place in sorted({place for way in ways for place in (way, *way.parents)}):
        for who, fix in _strangers(place, {ROOT, os.geteuid(), *_numbers(trusted)}):
            raise RunError(
                f"{place} {who}, who could replace {folder}, and jobs execute code from there",
                f"{fix}; or choose another --runs",
            )


def _strangers(place: Path, trusted: Collection[int]) -> Iterator[tuple[str, str]]:
    """Yields who else can rename what is in a place, in words, and how to change it."""
    try:
        link, there = place.lstat(), place.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return  # a folder that the user cannot enter holds nothing of the user's
    quoted = shlex.quote(str(place))
    for seen in (link, there):
        if seen.st_uid not in trusted and not _is_unmapped(seen.st_uid):
            name = user_name(seen.st_uid)
            trust = f"the same command with --trust {name.removeprefix(NAMELESS)}"
            yield f"belongs to {name}", f"if you trust {name}: {trust}"
    if not stat.S_ISDIR(there.st_mode) or there.st_mode & stat.S_ISVTX:
        return
    if there.st_mode & stat.S_IWOTH:
        yield "can be written by everybody", f"chmod o-w {quoted}"
    for tag, number in _writers(place, there):
        if tag == ACL_USER and number not in trusted:
            name = user_name(number)
            revoke = f"setfacl -x u:{number} {quoted}"
            yield f"can be written by {name} (ACL)", revoke
        if tag == ACL_GROUP and number not in {ROOT, os.getegid(), *os.getgroups()}:
            yield f"can be written by the group {_group_name(number)}", f"chmod g-w {quoted}"


def _writers(place: Path, seen: os.stat_result) -> list[tuple[int, int]]:
    """Returns tag and number of the other users and the groups that may write to a folder."""
    if not seen.st_mode & stat.S_IWGRP:  # with an ACL these bits are its mask
        return []
    try:
        content = os.getxattr(place, ACL)
    except (OSError, AttributeError):  # no ACL, or a system without them
        return [(ACL_GROUP, seen.st_gid)]
    entries = [ACL_ENTRY.unpack_from(content, at) for at in range(4, len(content), ACL_ENTRY.size)]
    writers = [(tag, number) for tag, permissions, number in entries if permissions & ACL_WRITE]
    return [
        (ACL_GROUP, seen.st_gid) if tag == ACL_OWNING_GROUP else (tag, number)
        for tag, number in writers
        if tag in (ACL_USER, ACL_OWNING_GROUP, ACL_GROUP)
    ]


def _numbers(names: Collection[str]) -> set[int]:
    """Returns the user numbers of some names; a name that is unknown here stands for nobody."""
    numbers = set()
    for name in names:
        with contextlib.suppress(KeyError):
            numbers.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
    return numbers


def _is_unmapped(number: int) -> bool:
    """Says whether a number stands for all users that a container does not know.

    In a user namespace, as containers have it, root's folders on the host seem to be nobody's.
    """
    try:
        mapped = Path("/proc/self/uid_map").read_text().split()
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    except OSError:
        return False
    return number == overflow and mapped != ["0", "0", "4294967295"]


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return f"with number {number}"
