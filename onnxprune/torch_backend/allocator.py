"""Where tensors get their memory from."""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of mallopt(3)."""
ALL = 2**31 - 1


@functools.cache
def keep_memory() -> bool:
    """Tell the allocator of the C library to keep what is freed for the rest of the process; return whether it has heard.

    glibc gives every larger block back to the system, which has to clear it page by page before the next step gets it again: a third of
    the time of a training step of EfficientNet-lite0. Other libraries are left as they are.
    """
    try:
        library = ctypes.CDLL(None)
        heard = [library.mallopt(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, ALL))]
    except (AttributeError, OSError, TypeError):
        return False
    return all(heard)
