"""What a system call's registers mean.

An argument arrives as the whole 64-bit register, unsigned. What C declares as a narrower type looks
at its low half only: a program may leave anything above it. The functions here are the casts.
"""

from __future__ import annotations


def s32(x: int) -> int:
    """`(int)x`: file descriptors, pids, flags that may be -1."""
    return ((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def u32(x: int) -> int:
    """`(unsigned int)x`: flags, modes, uids."""
    return x & 0xFFFFFFFF


def id_or_none(x: int) -> int:
    """A uid or gid where `(uid_t)-1` means none: that is -1; all others are unsigned."""
    x &= 0xFFFFFFFF
    return -1 if x == 0xFFFFFFFF else x


def s64(x: int) -> int:
    """`(long)x`: offsets, and lengths that may be negative."""
    return ((x & 0xFFFFFFFFFFFFFFFF) ^ 0x8000000000000000) - 0x8000000000000000
