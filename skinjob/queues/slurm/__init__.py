"""SLURM: the queue, and its commands and messages."""

from skinjob.queues.slurm.queue import QUEUE as QUEUE
