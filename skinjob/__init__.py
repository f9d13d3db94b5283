"""Transfer-learning experiments across an air gap: fetch, submit, train, report."""

__version__ = "0.1.0"
