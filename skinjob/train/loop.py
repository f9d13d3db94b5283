"""The training loop, of heads and of all layers, from top to bottom.

`train` goes through the epochs. `train_epoch` goes through the batches of an epoch: forward, loss,
update, for all runs that share a stack. Then it evaluates, and gives each run its row and its
checkpoint. `RunLoop.write` writes checkpoint, metrics.csv and state.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skinjob.config import TrainConfig
from skinjob.data.images import Split
from skinjob.errors import SkinjobError
from skinjob.sweeps.layout import Run
from skinjob.train.all_layers import AllLayers
from skinjob.train.checkpoint import Checkpoint, remove_checkpoints, save_checkpoint
from skinjob.train.evaluation import evaluate, loss_errors, train_scores
from skinjob.train.grid import is_test, test_rows
from skinjob.train.heads import MOST_INPUT_BYTES, Heads, new_state
from skinjob.train.lease import TakenError, record_done, record_failure
from skinjob.train.model import build_head
from skinjob.train.outputs import metrics_row, write_predictions, write_trained
from skinjob.train.reporter import Reporter
from skinjob.train.shared import Inputs, Job, Networks

PAUSE_PER_WRITE = 20
MOST_UNWRITTEN_S = 60
"""After writing for a second, a job trains for 20 s before it writes again, but at most for 60 s.
Epochs that take longer are written one by one. Epochs of 128 heads take less time than their files:
written one by one, those would take most of the job."""


ENDED = object()


def train(
    job: Job,
    loops: Sequence[RunLoop],
    tests: Mapping[Split, Inputs],
    epochs: Iterable[tuple[int, Inputs]],
) -> list[SkinjobError]:
    """Trains runs side by side, each epoch on the same inputs; returns the errors of failed runs.

    *tests* are the inputs of the evaluated splits. A run that fails, or that another process has
    taken, does not stop the others. Whatever ends the job, other than a kill, its finished epochs
    are written. `RunLoop.finish` is still to be called.
    """
    going = list(loops)
    try:
        asked = written = time.perf_counter()
        writing_s = 0.0
        for epoch, inputs in epochs:  # meanwhile the next view is computed
            waited_s = time.perf_counter() - asked
            unfinished = [loop for loop in going if loop.epoch < epoch <= loop.config.epochs]
            share_s = waited_s / max(1, len(unfinished))
            given = [(stack, networks_of(stack)) for stack in stacks(unfinished)]
            training = [train_epoch(*pair, epoch, inputs, tests, share_s) for pair in given]
            if job.trains_heads:
                train_heads(training, job.device.num_threads)
            else:
                take_turns(training, [networks.stream for _, networks in given])
            going = [loop for loop in going if loop.is_going]
            if not going:
                break
            asked = time.perf_counter()
            if asked - written >= min(MOST_UNWRITTEN_S, PAUSE_PER_WRITE * writing_s):
                for loop in going:
                    loop.write()
                written = time.perf_counter()
                writing_s, asked = written - asked, written
    finally:
        for loop in going:
            loop.write()
    return [loop.error for loop in loops if loop.error]


def stacks(loops: Sequence[RunLoop]) -> Iterator[Sequence[RunLoop]]:
    """Yields runs that are updated together.

    Heads of the same batch size are; networks of which all layers are trained have their own
    operations. A stack of heads has at most MOST_INPUT_BYTES of inputs for an update.
    """
    alike: dict[object, list[RunLoop]] = {}
    for loop in loops:
        alike.setdefault(loop if loop.all_layers else loop.config.batch_size, []).append(loop)
    for group in alike.values():
        job, config = group[0].job, group[0].config
        head_bytes = 4 * job.backbone.num_features * config.batch_size
        size = max(1, MOST_INPUT_BYTES // head_bytes)
        for first in range(0, len(group), size):
            yield group[first : first + size]


def networks_of(stack: Sequence[RunLoop]) -> Networks:
    """Returns the networks of runs that are updated together, after their last epoch."""
    if stack[0].all_layers:
        return stack[0].all_layers
    return Heads([loop.point.state for loop in stack], [loop.config.lr for loop in stack])


def train_heads(epochs: Sequence[Iterator[None]], num_threads: int) -> None:
    """Goes through the epochs of stacks of heads in threads, each on a single core."""
    # torch releases Python's lock during an operation.
    with ThreadPoolExecutor(num_threads, "heads", torch.set_num_threads, (1,)) as pool:
        list(pool.map(list, epochs))


def take_turns(
    epochs: Sequence[Iterator[None]], streams: Sequence[torch.cuda.Stream | None]
) -> None:
    """Goes through the epochs of runs that train all layers, an update of each in turn.

    So the streams of a GPU have the kernels of several runs at the same time.
    """
    turns = list(zip(epochs, streams, strict=True))
    on_gpu = [stream for stream in streams if isinstance(stream, torch.cuda.Stream)]
    for stream in on_gpu:  # images and checkpoints come from the default stream
        stream.wait_stream(torch.cuda.current_stream())
    while turns:
        for turn in list(turns):
            with torch.cuda.stream(turn[1]):  # does nothing on the CPU
                if next(turn[0], ENDED) is ENDED:
                    turns.remove(turn)
    for stream in on_gpu:  # checkpoints are written from the default stream
        torch.cuda.current_stream().wait_stream(stream)


def train_epoch(
    stack: Sequence[RunLoop],
    networks: Networks,
    epoch: int,
    inputs: Inputs,
    tests: Mapping[Split, Inputs],
    waited_s: float,
) -> Iterator[None]:
    """Trains each run of a stack on every image once, and evaluates; yields after each update.

    With `updates`, the last epoch may end before all images, and there are tests on the way.
    *waited_s* is a run's share of the waiting time for its inputs. Each run keeps its row and its
    state, or the error that ended it: the first loss that is not a number, or a changed image.
    """
    start = time.perf_counter()
    job, config = stack[0].job, stack[0].config
    labels = job.source.labels(Split.TRAIN)  # (N,) int64
    per_epoch = -(-len(labels) // config.batch_size)
    first, num_updates = (epoch - 1) * per_epoch, config.updates or config.epochs * per_epoch
    orders = torch.stack([order(len(labels), loop.config.seed, epoch) for loop in stack])  # (R, N)
    orders = orders[:, : (num_updates - first) * config.batch_size]
    parts = orders.split(config.batch_size, dim=1)  # (R, B) each
    last, targets = first + len(parts), labels[orders]  # (R, N)
    batches = inputs.batches([part.flatten() for part in parts])
    logits, at_tests = [], {}
    try:
        batch_targets = targets.to(networks.device).split(config.batch_size, dim=1)
        pairs = zip(batches, batch_targets, strict=True)
        for update, (batch, target) in enumerate(pairs, first + 1):
            share = lr_share(config, update - 1, num_updates)
            logits.append(networks.update(batch, target, share))
            if stack[0].all_layers:  # a head's epoch takes milliseconds
                if not stack[0].is_going:
                    return
                num_done = min((update - first) * config.batch_size, targets.shape[1])
                stack[0].report(epoch, num_done, targets.shape[1], start)
            if update < last and is_test(config, update):
                at_tests[update] = evaluated(job, networks, Split.TEST, tests[Split.TEST])
            yield
        at_end = {split: evaluated(job, networks, split, tests[split]) for split in tests}
    except SkinjobError as error:
        for loop in stack:
            loop.fail(error)
        return

    if is_test(config, last):
        at_tests[last] = at_end[Split.TEST]
    train_logits = torch.cat(logits, dim=1).cpu()  # (R, N, num_classes)
    losses, scores = train_scores(train_logits, targets, stack[0].positive)
    for split in at_end:
        of_split = evaluate(at_end[split], job.source.labels(split), stack[0].positive)
        scores |= {f"{split}_{name}": values for name, values in of_split.items()}
    test_labels = job.source.labels(Split.TEST)
    test_scores = {
        update: evaluate(test_logits, test_labels, stack[0].positive)
        for update, test_logits in at_tests.items()
    }
    seconds = (time.perf_counter() - start) / len(stack) + waited_s
    shared = {
        "epoch": epoch,
        "updates": last,
        "seconds": seconds,
        "images_per_s": targets.shape[1] / seconds,
    }
    failures = loss_errors(losses, epoch, first, config.batch_size)
    for index, (loop, state) in enumerate(zip(stack, networks.states(), strict=True)):
        if failure := failures[index]:
            loop.fail(failure)
            continue
        own = shared | of_run(scores, index) | {"lr": loop.config.lr * share}
        last_logits = {split: of_stack[index] for split, of_stack in at_end.items()}
        own_tests = {update: of_run(at, index) for update, at in test_scores.items()}
        loop.keep(own, state, last_logits, own_tests, losses[index])


def of_run(scores: Mapping[str, Tensor], index: int) -> dict[str, float]:
    """Returns the metrics of a run in a stack; *scores* (R,) each."""
    return {name: float(values[index]) for name, values in scores.items()}


class RunLoop:
    """A run in training: its finished epochs, and its files."""

    def __init__(self, job: Job, run: Run, reporter: Reporter) -> None:
        """Continues after the run's checkpoint, and cuts metrics.csv and tests.csv to its epochs.

        Raises: TakenError if another process has taken the run.
        """
        self.job, self.run, self.reporter = job, run, reporter
        self.config = job.configs[run]
        images, self.point = job.source.images, job.checkpoints[run]
        self.positive = images.positive_label(self.config.positive)
        self.all_layers: AllLayers | None = None
        self.error: SkinjobError | None = None
        self.last_logits: Mapping[Split, Tensor] = {}  # (num_images, num_classes) float32 each
        self.unwritten: list[Mapping[str, float]] = []
        num_classes, size = len(images.classes), job.backbone.num_features
        if not job.trains_heads:
            side = job.source.preprocessing.crop
            self.all_layers = AllLayers(
                self.config, job.backbone, job.weights, num_classes, job.device, side
            )
        elif not self.point.epoch:
            head = build_head(size, num_classes, self.config.seed)
            self.point = replace(self.point, state=new_state(head, self.config.lr))
        updates = self.point.state.get("updates", 0)
        if not job.lease.say(run, epoch=self.epoch, updates=updates, resumed_epoch=self.epoch):
            raise TakenError(run)
        job.lease.remove_partials(run)
        if self.all_layers and self.epoch:
            self.all_layers.restore(self.point.state)
        self._write_rows()

    @property
    def epoch(self) -> int:
        """The number of epochs that are finished."""
        return self.point.epoch

    @property
    def is_going(self) -> bool:
        """Whether this process still trains the run."""
        return self.error is None and self.job.lease.has(self.run)

    def report(self, epoch: int, num_done: int, num_images: int, start: float) -> None:
        """Reports the images so far of an epoch that takes long."""
        seconds = time.perf_counter() - start
        self.reporter.trained(self.run, self.config, epoch, num_done, num_images, seconds)

    def keep(
        self,
        row: Mapping[str, float],
        state: dict[str, Any],
        last_logits: Mapping[Split, Tensor],
        test_scores: Mapping[int, Mapping[str, float]],
        losses: Tensor,
    ) -> None:
        """Keeps a finished epoch, for the next `write`.

        *test_scores* are those of the tests in it by update, *losses* (N,) those of its training
        images, in the order of the updates.
        """
        before, batch_size = self.point, self.config.batch_size
        first, epoch = before.state.get("updates", 0), self.epoch + 1
        tests, since_test = test_rows(
            test_scores, losses, before.since_test, epoch=epoch, first=first, batch_size=batch_size
        )
        self.last_logits = last_logits
        self.unwritten.append(row)
        self.point = Checkpoint(
            [*before.rows, metrics_row(self.run, self.config, row)],
            state,
            self.job.device.precision,
            [*before.tests, *tests],
            since_test,
        )

    def write(self) -> None:
        """Writes checkpoint, CSV files and state.json, if an epoch has ended since the last time.

        If another process has taken the run, the lease drops it instead.
        """
        if not self.unwritten or not self.job.lease.check(self.run):
            return
        save_checkpoint(self.run, self.config, self.point)  # first: it can restore the other files
        self._write_rows(is_durable=False)
        unwritten, self.unwritten = self.unwritten, []
        self.reporter.finished_epochs(self.run, self.config, unwritten)

    def _write_rows(self, *, is_durable: bool = True) -> None:
        self.run.write_metrics(self.point.rows, is_durable=is_durable)
        if self.config.updates:
            self.run.write_tests(self.point.tests, is_durable=is_durable)

    def fail(self, error: SkinjobError) -> None:
        """Writes the finished epochs, and the error that ended the run."""
        self.write()
        self.error = error
        record_failure(self.job.lease, self.run, error)

    def finish(self, tests: Mapping[Split, Inputs]) -> None:
        """Writes predictions, trained layers, and the status done."""
        run, job = self.run, self.job
        if not job.lease.check(run):
            return
        if not self.last_logits:  # the checkpoint has all epochs
            networks = networks_of([self])
            self.last_logits = {s: evaluated(job, networks, s, tests[s])[0] for s in tests}
        for split, logits in self.last_logits.items():
            file = run.predictions_file if split == Split.TEST else run.val_predictions_file
            write_predictions(file, job.source.files(split), logits, job.source.images.classes)
        write_trained(run, self.point.state, job.backbone, job.info)
        self._write_rows()
        if record_done(job.lease, run):
            remove_checkpoints(run)


def order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of the images in an epoch, (num_images,) int64."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(
        num_images, generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))
    )


def lr_share(config: TrainConfig, update: int, num_updates: int) -> float:
    """Returns the share of the learning rate for an update, counted from 0."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * update / num_updates))
    return 1.0


def evaluated(job: Job, networks: Networks, split: Split, inputs: Inputs) -> Tensor:
    """Returns the logits of all images of a split, (R, num_images, num_classes) float32, CPU."""
    parts = torch.arange(len(job.source.files(split))).split(networks.batch_size)
    return torch.cat([networks.logits(batch) for batch in inputs.batches(parts)], dim=1).cpu()
