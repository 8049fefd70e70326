"""Blocks of the disk for a file before it needs them, and how many are kept in reserve.

A disk that is full must not keep messages from leaving. So there is a reserve of blocks that appends may not use: the
log has it while the file is open, and FILE-lock while it is closed.
"""

import os

from netcomm_sqlite.failures import NO_SPACE

# The reserve in bytes: FILE-lock has it while the file is closed. While the file is open, the log has its share, the
# log's index FILE-shm takes some, and FILE-lock keeps the rest for pages that the file gets not by appends.
RESERVE = 512 * 1024
RESERVE_OF_LOG = 416 * 1024
RESERVE_BESIDE = 64 * 1024

O_BINARY = getattr(os, "O_BINARY", 0)


def extend(descriptor: int, start: int, end: int) -> bool:
    """Give a file of `start` bytes blocks up to `end`, zeros; returns whether the disk has them."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, start, end - start)
        else:
            os.lseek(descriptor, start, os.SEEK_SET)
            os.write(descriptor, bytes(end - start))
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        return False
    return True


def extend_as_far(descriptor: int, start: int, end: int) -> bool:
    """Give a file of `start` bytes blocks up to `end`, or as many as there are; returns whether it has all."""
    step = end - start
    while start < end:
        if extend(descriptor, start, min(start + step, end)):
            start += step
        elif step <= 4096:
            return False
        else:
            step //= 2
    return True
