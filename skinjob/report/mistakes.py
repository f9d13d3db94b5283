"""The test images that runs get wrong with the most confidence, with small pictures of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from skinjob.data.audit import thumbnail
from skinjob.data.images import read_index
from skinjob.errors import ImagesError
from skinjob.report.predictions import Predictions
from skinjob.report.tables import SweepTable

MOST_SHOWN = 12  # of each kind; a thumbnail takes about 6 KB


@dataclass(frozen=True)
class Mistake:
    """A test image that runs get wrong."""

    path: str
    truth: str
    called: str
    """The wrong class with the highest probability, as a mean over the runs that are wrong."""
    probability: float
    """That mean."""
    num_wrong: int

    @property
    def name(self) -> str:
        """The file's name without its folders, which may name people."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of runs on the same test images, the most confident first."""

    num_runs: int
    num_images: int
    always: Sequence[Mistake]
    """Images that every run gets wrong."""
    sometimes: Sequence[Mistake]
    """Images that most, some or one of the runs get wrong; the most often wrong first."""

    @property
    def shown(self) -> list[Mistake]:
        return [*self.always[:MOST_SHOWN], *self.sometimes[:MOST_SHOWN]]


def find_mistakes(of_runs: Sequence[Predictions]) -> Mistakes | None:
    """Returns the mistakes of runs; None without runs."""
    if not of_runs:
        return None
    first = of_runs[0]
    probabilities = np.array([run.probabilities for run in of_runs])  # (runs, images, classes)
    is_wrong = probabilities.argmax(axis=2) != first.labels  # (runs, images)
    num_wrong = is_wrong.sum(axis=0)
    means = (probabilities * is_wrong[:, :, None]).sum(axis=0) / np.maximum(num_wrong, 1)[:, None]
    means[np.arange(len(first.labels)), first.labels] = -1  # only wrong classes
    called = means.argmax(axis=1)
    mistakes = [
        Mistake(
            path=first.images[place],
            truth=first.classes[first.labels[place]],
            called=first.classes[called[place]],
            probability=float(means[place, called[place]]),
            num_wrong=int(num_wrong[place]),
        )
        for place in np.flatnonzero(num_wrong)
    ]
    mistakes.sort(key=lambda mistake: (-mistake.num_wrong, -mistake.probability))
    return Mistakes(
        num_runs=len(of_runs),
        num_images=len(first.labels),
        always=[mistake for mistake in mistakes if mistake.num_wrong == len(of_runs)],
        sometimes=[mistake for mistake in mistakes if mistake.num_wrong < len(of_runs)],
    )


def thumbnails(table: SweepTable, paths: Iterable[str]) -> Mapping[str, str]:
    """Returns small JPEGs in base64 by path, of those images that are still as they were trained.

    They have pixels only, no EXIF and no comments. Empty on a machine without the images.
    """
    wanted, info = set(paths), table.info.images
    jpegs: dict[str, str] = {}
    with suppress(ImagesError):
        images = read_index(table.sweep.images_file, Path(info.root), info.classes)
        for place, file in enumerate(images.files):
            if file.path in wanted:
                with suppress(Exception):  # Pillow's decoders raise all kinds
                    jpegs[file.path] = thumbnail(images, place)
    return jpegs
