"""The converged head of a sweep: what every batch size approaches, with enough updates.

With a frozen backbone, training is a convex problem: the cross-entropy of a linear layer, without a
penalty. Its smallest loss is the same for every batch size. A job of the sweep computes it from the
cached views, so that the report can say how far above it each run stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skinjob.data.images import Split
from skinjob.errors import RunError
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import Converged, utc_now, write_record
from skinjob.train import claims
from skinjob.train.evaluation import evaluate
from skinjob.train.images import View
from skinjob.train.shared import Inputs, Job
from skinjob.train.views import Views

log = logging.getLogger("skinjob")

MOST_BYTES = 512 << 20  # of features in memory: 131,000 rows of ResNet18
BATCH = 4096  # rows that are read at once
LOOK_S = 0.2
SMALL = 1e-6  # a gradient, divided by that of a head of zeros; the loss is then exact to 1e-9
MOST_ITERATIONS = 2000
RIDGE = 1e-9  # of the features' mean variance, for features that are constant or depend on others
HALF = math.log(2)  # the loss of an image whose class gets half of the probability


@dataclass(frozen=True)
class Fit:
    """A head that was fitted to features."""

    weight: Tensor
    """(num_features, num_classes) float64"""
    bias: Tensor
    """(num_classes,) float64"""
    separates: bool
    """Whether each row's own class gets more than half of the probability. Larger multiples of this
    head then have smaller and smaller losses, and no head is the best."""
    gradient: float
    """The norm of the gradient by uncorrelated features, divided by that of a head of zeros."""
    iterations: int

    def logits(self, features: Tensor) -> Tensor:
        """Returns (N, num_classes) of (N, num_features)."""
        return features.double() @ self.weight + self.bias


class _SeparatedError(Exception):
    """Ends a fit whose head separates the classes."""


@contextmanager
def claimed(sweep: Sweep, epochs: int, *, waits: bool) -> Iterator[bool]:
    """Claims the converged head during the block, and yields whether this job computes it.

    It does if no job has fitted it to so many *epochs*: with `updates`, a larger batch has more.
    With *waits* it first waits for a job that is fitting it, perhaps to fewer epochs. That ends
    with the other job, or when the claim expires.

    A job claims it, sets its runs to done, and only then computes it. So whatever happens to the
    job meanwhile harms no run, and `submit --wait` sees that the sweep is not complete yet.
    """
    file, is_own = sweep.converged_file, False
    with suppress(OSError):  # a full disk
        while not (is_own := claims.claim(file)) and waits and not _is_known(sweep, epochs):
            time.sleep(LOOK_S)
    try:
        yield is_own and not _is_known(sweep, epochs)
    finally:
        if is_own:
            with suppress(OSError):
                claims.release(file)


def _is_known(sweep: Sweep, epochs: int) -> bool:
    with suppress(RunError):  # a damaged record is replaced
        known = sweep.converged()
        return known is not None and known.epochs >= epochs
    return False


def record_converged(
    sweep: Sweep, job: Job, views: Views, epochs: int, tests: Mapping[Split, Inputs]
) -> None:
    """Writes converged.json; if that fails, the log says why, and the runs are done all the same.

    *tests* are the features of the evaluated splits.
    """
    try:
        record = converged(job, views, epochs, tests, lambda: claims.renew(sweep.converged_file))
        write_record(sweep.converged_file, record)
    except Exception as error:
        log.warning("converged head: not computed: %s", error)
        return
    loss = f"train loss {record.metrics['train_loss']:.4f}"
    log.info(
        "converged head: %s, %d of %d views of %d images, gradient %.0e, %d iterations, %.1f s",
        loss if record.exists else "none, because a head tells all these images apart",
        record.views,
        record.epochs,
        record.images,
        record.gradient,
        record.iterations,
        record.seconds,
    )


def converged(
    job: Job,
    views: Views,
    epochs: int,
    tests: Mapping[Split, Inputs],
    renew: Callable[[], None],
) -> Converged:
    """Returns the record of the converged head. *renew* is called again and again meanwhile.

    Takes the views of the first *epochs* that fit into MOST_BYTES; of a view that does not, images
    at equal steps.

    Raises: RuntimeError if a view is not in the cache, or if the fit does not converge.
    """
    start = time.perf_counter()
    truth, size = job.source.labels(Split.TRAIN), job.backbone.num_features
    most = MOST_BYTES // (8 * size)
    chosen = torch.arange(0, len(truth), math.ceil(len(truth) / most))
    num_views = max(1, min(epochs, most // len(chosen)))
    rows = torch.empty(num_views * len(chosen), size, dtype=torch.float64)
    for epoch, part in enumerate(rows.split(len(chosen)), start=1):
        view = View(Split.TRAIN, epoch)
        if (features := views.cached(view)) is None:
            raise RuntimeError(f"{view.name} is not in {views.cache.folder}")
        parts = chosen.split(BATCH)
        for place, batch in zip(part.split(BATCH), features.batches(parts), strict=True):
            place.copy_(batch)
        renew()
    labels, images = truth[chosen].repeat(num_views), job.source.images
    fit = fitted(rows, labels, len(images.classes), renew)
    metrics = {"train_loss": 0.0}
    if not fit.separates:
        logits = fit.logits(rows)
        metrics["train_loss"] = float(functional.cross_entropy(logits, labels))
        metrics["train_accuracy"] = float((logits.argmax(dim=1) == labels).double().mean())
        positive = images.positive_label(job.recipe.positive)
        for split, inputs in tests.items():
            parts = torch.arange(len(job.source.files(split))).split(BATCH)
            logits = torch.cat([fit.logits(batch) for batch in inputs.batches(parts)])
            scores = evaluate(logits.unsqueeze(0), job.source.labels(split), positive)
            metrics |= {f"{split}_{name}": float(value) for name, value in scores.items()}
    return Converged(
        exists=not fit.separates,
        metrics={name: value for name, value in metrics.items() if not math.isnan(value)},
        gradient=fit.gradient,
        iterations=fit.iterations,
        views=num_views,
        epochs=epochs,
        images=len(chosen),
        seconds=round(time.perf_counter() - start, 3),
        computed_utc=utc_now(),
    )


def fitted(
    rows: Tensor, labels: Tensor, num_classes: int, renew: Callable[[], None] = lambda: None
) -> Fit:
    """Returns the head with the smallest mean cross-entropy, or a head that separates the classes.

    *rows* (N, num_features) float64, *labels* (N,) int64. The method is L-BFGS on features that are
    made uncorrelated: their variances differ by a factor of 1e8, so that otherwise it would take
    thousands of iterations. It starts with a step of Newton's method.

    Raises: RuntimeError if the gradient is not small after MOST_ITERATIONS.
    """
    problem, iterations = _Problem(rows, labels, num_classes), 0
    shape = (rows.shape[1] + 1, num_classes)
    numbers = torch.zeros(shape, dtype=torch.float64)
    _, at_zero = problem.look(numbers)
    start = float(at_zero.norm()) or 1.0

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal numbers
        renew()
        numbers = torch.from_numpy(flat.copy()).view(shape)
        losses, gradient = problem.look(numbers)
        if losses.max() < HALF:
            raise _SeparatedError
        return float(losses.mean()), gradient.flatten().numpy()

    def count(_: NDArray[np.float64]) -> None:
        nonlocal iterations
        iterations += 1

    first = (-num_classes * at_zero).flatten().numpy()
    try:
        objective(first)  # a sweep of few images needs no more, and no import of the optimizer
        from scipy.optimize import minimize

        limits = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS, "maxcor": 30}
        stop = {"ftol": 0.0, "gtol": SMALL * start / first.size**0.5}
        best = minimize(
            objective, first, jac=True, method="L-BFGS-B", callback=count, options=limits | stop
        )
        numbers, separates = torch.from_numpy(best.x).view(shape), False
    except _SeparatedError:
        separates = True
    gradient = float(problem.look(numbers)[1].norm()) / start
    if not separates and gradient > 10 * SMALL:
        raise RuntimeError(f"after {iterations} iterations the gradient is still {gradient:.1e}")
    return Fit(*problem.head(numbers), separates, gradient, iterations)


class _Problem:
    """The cross-entropy of a head, as a function of its numbers for uncorrelated features."""

    def __init__(self, rows: Tensor, labels: Tensor, num_classes: int) -> None:
        self._rows, self._labels = rows, labels.unsqueeze(1)
        self._targets = functional.one_hot(labels, num_classes).double()
        self._mean = rows.mean(dim=0)
        covariance = rows.T @ rows / len(rows) - torch.outer(self._mean, self._mean)
        ridge = max(RIDGE * float(covariance.diagonal().mean()), 1e-12)
        identity = torch.eye(rows.shape[1], dtype=torch.float64)
        lower = torch.linalg.cholesky(covariance + ridge * identity)
        self._mix = torch.linalg.solve_triangular(lower.T, identity, upper=True)
        """(rows - mean) @ mix has the covariance 1."""

    def head(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weight and bias of (num_features + 1, num_classes)."""
        weight = self._mix @ numbers[:-1]
        return weight, numbers[-1] - self._mean @ weight

    def look(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rows' losses, (N, 1), and the gradient of their mean by *numbers*."""
        weight, bias = self.head(numbers)
        log_p = (self._rows @ weight + bias).log_softmax(dim=1)
        errors = (log_p.exp() - self._targets) / len(self._rows)
        total = errors.sum(dim=0, keepdim=True)  # (1, num_classes)
        by_weight = (errors.T @ self._rows).T  # rows.T @ errors takes ten times as long
        slopes = self._mix.T @ (by_weight - torch.outer(self._mean, total[0]))
        return -log_p.gather(1, self._labels), torch.cat([slopes, total])
