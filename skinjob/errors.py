"""Errors that a user can fix, each with the command for it.

The library raises them. Only `skinjob.cli.main` prints them, as two lines:

    error: weights/resnet18.safetensors: no such file
    fix:   make fetch-weights

Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class SkinjobError(Exception):
    """An error that the user can fix: what is wrong, and the command that fixes it."""

    def __init__(self, message: str, fix: str, details: Sequence[str] = ()) -> None:
        """*details* are more lines, for stdout."""
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details = details


class ConfigError(SkinjobError):
    """A value of the configuration that cannot work."""


class DownloadError(SkinjobError):
    """A file that cannot be downloaded, or that is not the expected file."""


class WeightsError(SkinjobError):
    """Weights that are missing, damaged, untrusted, or of another architecture."""


class ImagesError(SkinjobError):
    """Images that cannot be used for training."""


class ClusterError(SkinjobError):
    """A cluster that refuses a request or does not answer."""


class RunError(SkinjobError):
    """A sweep or a run that is missing, damaged, in use, or cannot continue."""


class BundleError(SkinjobError):
    """A bundle that cannot be made, or files that are not as they were packed."""
