"""How freed memory is kept for the next operator."""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["keep_freed_memory"]


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have the C library keep freed blocks of megabytes instead of handing them back at once.

    By default glibc asks the system for every large block anew, and the page faults cost up to five
    times what an elementwise operator does. Freeing one block of almost 32 MiB, the most that
    counts, makes it keep as much as that for the life of the process. The block is never touched,
    so this costs nothing; other C libraries ignore it.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
