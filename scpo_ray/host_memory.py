"""How a process that computes on CPUs holds its memory."""

import ctypes

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
"""Of glibc's `malloc.h`."""
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep what is freed for what is allocated next, until the process ends.

    glibc returns tensors of 32 MiB and more to the system, which hands out their memory anew, zeroed, page by page: at every
    step of a training, a twentieth to a tenth of a small model's. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _MOST), (_M_TRIM_THRESHOLD, _MOST)):
            mallopt(option, value)
