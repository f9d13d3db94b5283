"""The folder of views that runs share, and the claims by which they share the work.

A claim is a hint, never a lock: it says that somebody is at a view, so that others begin with
another one. No number hangs on it. Two that compute the same view write the same file, each in
one step; a claim whose owner died costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from skinjob.files import remove_abandoned, replacing
from skinjob.locks import process_exists
from skinjob.train.features import Features, FeaturesWriter, read_features

log = logging.getLogger("skinjob")

ABANDONED_S = 24 * 3600
MARK = ".now-"
STALE_S = 60  # a claim is touched every second or so


@dataclass(frozen=True)
class ViewCache:
    """Features on disk, each file named by a digest of all that they depend on."""

    folder: Path

    def file(self, key: dict[str, str]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def read(self, key: dict[str, str], num_images: int) -> Features | None:
        """Returns the features of *num_images*, checked, or None; removes a damaged file."""
        file = self.file(key)
        try:
            return read_features(file, num_images)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            log.warning("a view is damaged, and computed anew: %s", error)
            with suppress(OSError):  # it will be replaced
                file.unlink()
            return None

    def has(self, key: dict[str, str]) -> bool:
        """Says whether a view is there and can be read: another user may have closed it."""
        return os.access(self.file(key), os.R_OK)

    @contextmanager
    def writing(self, key: dict[str, str], num_images: int) -> Iterator[FeaturesWriter]:
        """Yields what takes the features, batch by batch; with the last of them they are kept.

        The key goes with them as metadata that a person can read.
        """
        with replacing(self.file(key), is_locked=True) as partial, partial.open("r+b") as file:
            yield FeaturesWriter(file, num_images, key)

    def clear_up(self) -> None:
        """Removes what processes that were killed left: views half written, claims, marks."""
        with suppress(OSError):  # no folder yet, or a full disk
            now = self._now()
            remove_abandoned(self.folder, now, ABANDONED_S)
            for claim in self.folder.glob("*.claim"):
                if self._is_stale(claim):
                    claim.unlink(missing_ok=True)
            for mark in self.folder.glob(f"{MARK}*"):
                if now - mark.stat().st_mtime >= ABANDONED_S:
                    mark.unlink(missing_ok=True)

    def claim(self, key: dict[str, str]) -> bool:
        """Returns True when the view is now ours to compute, False when somebody else is at it."""
        claim = self._claim_file(key)
        claim.parent.mkdir(parents=True, exist_ok=True)
        if claim.exists() and self._is_stale(claim):
            claim.unlink(missing_ok=True)
        try:
            handle = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as owner:
            owner.write(f"{socket.gethostname()} {os.getpid()}")
        return True

    def keep_claim(self, key: dict[str, str]) -> None:
        """Says that we are still at it."""
        claim = self._claim_file(key)
        if claim.exists():
            claim.touch()

    def release(self, key: dict[str, str]) -> None:
        self._claim_file(key).unlink(missing_ok=True)

    def claimed_by(self, key: dict[str, str]) -> str:
        """Returns host and process id of who is at a view, empty when nobody is."""
        try:
            return self._claim_file(key).read_text(encoding="utf-8")
        except OSError:
            return ""

    def _claim_file(self, key: dict[str, str]) -> Path:
        return self.file(key).with_suffix(".claim")

    def _is_stale(self, claim: Path) -> bool:
        """Says whether a claim's owner is gone: its process has ended, or is silent for long."""
        try:
            host, _, pid = claim.read_text(encoding="utf-8").partition(" ")
            age_s = self._now() - claim.stat().st_mtime
        except OSError:
            return False  # gone in between
        if pid.isdecimal() and process_exists(host, int(pid)) is False:
            return True
        return age_s > STALE_S

    def _now(self) -> float:
        """Returns the time by the clock that stamps the claims: the file server's, not ours."""
        # Without a name where that can be had: a kill leaves nothing.
        with tempfile.TemporaryFile(prefix=MARK, dir=self.folder) as mark:
            return os.fstat(mark.fileno()).st_mtime
