"""Memory allocation for tensors."""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


@functools.cache
def keep_memory() -> bool:
    """Let glibc keep freed memory until the process ends; return whether the C library accepts this setting.

    By default glibc returns every larger block to the system, which clears it page by page before the next step: a third of the time of
    a training step of EfficientNet-lite0.
    """
    try:
        library = ctypes.CDLL(None)
        return all([library.mallopt(M_MMAP_MAX, 0), library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)])
    except (AttributeError, OSError, TypeError):
        return False
