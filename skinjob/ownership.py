"""Who owns a file, and who could replace it.

Jobs execute pickles from a sweep's folder. A user who can write to it, or can rename one of its
parents, can execute code as the user of the jobs.
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
    """Returns the name of a file's owner; None if both it and the target of a link are the user's.

    Raises: OSError if the file cannot be examined.
    """
    for number in (path.lstat().st_uid, path.stat().st_uid):
        if number != os.geteuid():
            return user_name(number)
    return None


def user_name(number: int) -> str:
    """Returns a user's name, or "user" and the number if there is no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"{NAMELESS}{number}"


def make_private(folder: Path) -> None:
    """Makes a folder in which only the user can create files, if it does not exist.

    Raises: RunError as `require_private`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    require_private(folder)


def require_private(folder: Path) -> None:
    """Checks that only the user can create files in a folder.

    Raises: RunError if it belongs to another user, is a link, or others may write to it.
    """
    info = folder.lstat()
    is_own = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
    if not is_own or info.st_mode & 0o022:  # with an ACL the group's bits are its mask
        raise RunError(
            f"{folder} is not a private folder of yours", f"ls -ld {shlex.quote(str(folder))}"
        )


def require_safe(folder: Path, trusted: Collection[str] = ()) -> None:
    """Checks that no stranger can replace a folder.

    Root, the user's own groups and the users in *trusted* are not strangers. The folder may not
    exist yet. In a folder with a sticky bit, such as /tmp, strangers cannot rename a user's files.

    Raises: RunError that names the first parent folder where a stranger can write.
    """
    paths = (absolute(folder), folder.resolve())  # a link in the path can be replaced too
    for place in sorted({place for path in paths for place in (path, *path.parents)}):
        for who, fix in _strangers(place, {ROOT, os.geteuid(), *_numbers(trusted)}):
            raise RunError(
                f"{place} {who}, who could replace {folder}, and jobs execute code in it",
                f"{fix}; or choose another --runs",
            )


def _strangers(place: Path, trusted: Collection[int]) -> Iterator[tuple[str, str]]:
    """Yields a phrase for each stranger that can rename the files in a folder, and a fix."""
    try:
        link, target = place.lstat(), place.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return  # the user cannot have files in a folder that the user cannot enter
    quoted = shlex.quote(str(place))
    for number in (link.st_uid, target.st_uid):
        if number not in trusted and not _is_unmapped(number):
            name = user_name(number)
            trust = f"the same command with --trust {name.removeprefix(NAMELESS)}"
            yield f"belongs to {name}", f"if you trust {name}: {trust}"
    if not stat.S_ISDIR(target.st_mode) or target.st_mode & stat.S_ISVTX:
        return
    if target.st_mode & stat.S_IWOTH:
        yield "can be written by everybody", f"chmod o-w {quoted}"
    for tag, number in _writers(place, target):
        if tag == ACL_USER and number not in trusted:
            name = user_name(number)
            revoke = f"setfacl -x u:{number} {quoted}"
            yield f"can be written by {name} (ACL)", revoke
        if tag == ACL_GROUP and number not in {ROOT, os.getegid(), *os.getgroups()}:
            yield f"can be written by the group {_group_name(number)}", f"chmod g-w {quoted}"


def _writers(place: Path, info: os.stat_result) -> list[tuple[int, int]]:
    """Returns tag and number of the other users and the groups that may write to a folder."""
    if not info.st_mode & stat.S_IWGRP:  # with an ACL these bits are its mask
        return []
    try:
        content = os.getxattr(place, ACL)
    except (OSError, AttributeError):  # no ACL, or a system without them
        return [(ACL_GROUP, info.st_gid)]
    entries = [ACL_ENTRY.unpack_from(content, at) for at in range(4, len(content), ACL_ENTRY.size)]
    writers = [(tag, number) for tag, permissions, number in entries if permissions & ACL_WRITE]
    return [
        (ACL_GROUP, info.st_gid) if tag == ACL_OWNING_GROUP else (tag, number)
        for tag, number in writers
        if tag in (ACL_USER, ACL_OWNING_GROUP, ACL_GROUP)
    ]


def _numbers(names: Collection[str]) -> set[int]:
    """Returns the user numbers of some names; ignores names that this machine does not know."""
    numbers = set()
    for name in names:
        with contextlib.suppress(KeyError):
            numbers.add(int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid)
    return numbers


def _is_unmapped(number: int) -> bool:
    """Returns whether a number stands for all users that a container does not know.

    In the user namespace of a container, the folders of the host's root seem to belong to nobody.
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
