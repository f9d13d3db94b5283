"""Fixtures of the tests that train in their own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from untrained import write_untrained


@pytest.fixture(autouse=True)
def _own_threads() -> Iterator[None]:
    """Gives each test as many threads as the first had; a job in this process sets its own."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def published_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of random numbers, with the input of the published one."""
    file = tmp_path_factory.mktemp("published") / "resnet18.safetensors"
    return write_untrained(file).path
