"""SLURM: its commands, its words, and the queue that skinjob makes of them."""

from skinjob.queues.slurm.queue import QUEUE as QUEUE
