"""Limits of the process, as administrators set them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def files_open() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def few_files(more: int) -> Iterator[None]:
    """Limit how many more files the process may open in a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_open() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
