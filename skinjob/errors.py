"""What can go wrong for a user, each with the command that mends it.

The library raises these; `skinjob.cli.main` alone prints them, as two lines:

    error: weights/resnet18.safetensors: no such file
    fix:   make fetch-weights

Anything else that is raised is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class SkinjobError(Exception):
    """A fault that the user can mend: what was found, and the command that mends it."""

    def __init__(self, message: str, fix: str, details: Sequence[str] = ()) -> None:
        """*details* are lines for stdout, where the fault has more parts than fit a sentence."""
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details = details


class ConfigError(SkinjobError):
    """A value of the configuration that cannot work."""


class DownloadError(SkinjobError):
    """A file that a server does not give, or not as it was promised."""


class WeightsError(SkinjobError):
    """Weights that are missing, damaged, of another architecture or not to be trusted."""


class ImagesError(SkinjobError):
    """An image tree that cannot be trained on."""


class ClusterError(SkinjobError):
    """A cluster that refuses, or does not answer."""


class RunError(SkinjobError):
    """A sweep or a run that is missing, in the way, or cannot go on."""
