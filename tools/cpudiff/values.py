"""Values that matter: the numbers at which arithmetic goes wrong."""

from __future__ import annotations

import struct
from random import Random
from typing import Final

MASK64: Final = (1 << 64) - 1

_EDGES: Final = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255]


def integer(rng: Random) -> int:
    """64 bits that hold an edge of some width, a small number, a bit pattern, or anything."""
    how = rng.random()
    if how < 0.25:
        return rng.choice(_EDGES)
    if how < 0.35:
        return -rng.choice(_EDGES) & MASK64
    if how < 0.6:
        width = rng.choice((8, 16, 32, 64))
        value = rng.choice(((1 << width) - 1, 1 << width - 1, (1 << width - 1) - 1))
        return (value + rng.choice((-1, 0, 0, 0, 1))) & MASK64
    if how < 0.7:
        return 1 << rng.randrange(64)
    if how < 0.75:
        return rng.choice((0x5555555555555555, 0xAAAAAAAAAAAAAAAA, 0x0123456789ABCDEF))
    if how < 0.85:
        return rng.getrandbits(rng.randrange(1, 65))
    return rng.getrandbits(64)


_F32: Final = [
    0, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000,
    0x7F800001, 0xFFA12345, 0x7FFFFFFF, 0x7FD54321, 1, 0x80000001, 0x007FFFFF, 0x00800000,
    0x7F7FFFFF, 0xFF7FFFFF, 0x3F000000, 0x3FC00000, 0x40200000, 0xC0200000, 0x4F000000, 0xCF000000,
    0x4EFFFFFF, 0x5F000000, 0x3EAAAAAB, 0x34000000, 0x00400000, 0x1F800000, 0x20000000,
    0x4B000001, 0x3F7FFFFF, 0x40490FDB,
]  # fmt: skip
_F64: Final = [
    0, 1 << 63, 0x3FF0 << 48, 0xBFF0 << 48, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0xFFF8 << 48,
    (0x7FF0 << 48) + 1, 0xFFF4123456789ABC, MASK64 >> 1, 0x7FFABCDEF0123456, 1, (1 << 63) + 1,
    0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x3FE0 << 48,
    0x3FF8 << 48, 0x4004 << 48, 0xC004 << 48, 0x41E0 << 48, 0xC1E0 << 48, 0x41DFFFFFFFC00000,
    0x43E0 << 48, 0xC3E0 << 48, 0x3FD5555555555555, 0x3CB0 << 48, 0x0008 << 48, 0x47EFFFFFE0000000,
    0x47EFFFFFF0000000, 0x36A0 << 48, 0x3690 << 48, 0x380FFFFFC0000000, 0x3FEFFFFFFFFFFFFF,
    0x400921FB54442D18, 0x1FF0 << 48, 0x2000 << 48, 0x4340 << 48,
]  # fmt: skip
_ONE: Final = 1 << 63
# Significand, sign and exponent.
_F80: Final = [
    (0, 0), (0, 0x8000), (_ONE, 0x3FFF), (_ONE, 0xBFFF), (_ONE, 0x7FFF), (_ONE, 0xFFFF),
    (_ONE | 1 << 62, 0x7FFF), (_ONE | 1 << 62, 0xFFFF), (_ONE | 1, 0x7FFF),
    (_ONE | 0x2123456789ABCDEF, 0xFFFF), (MASK64, 0x7FFF), (1, 0), (1, 0x8000), (_ONE - 1, 0),
    (_ONE, 1), (MASK64, 0x7FFE), (MASK64, 0xFFFE), (_ONE, 0x3FFE), (_ONE | 1 << 62, 0x3FFF),
    (_ONE, 0), (MASK64, 0),  # pseudo-denormal
    (1 << 62, 0x3FFF), (1, 0x4000), (0, 0x3FFF),  # unnormal
    (1 << 62, 0x7FFF), (0, 0x7FFF), (0, 0xFFFF),  # pseudo-NaN, pseudo-infinity
    (_ONE, 0x400E), (_ONE, 0xC00E), (_ONE, 0x401E), (_ONE, 0xC01E), (_ONE, 0x403E), (_ONE, 0xC03E),
    (MASK64, 0x403D), (0xC90FDAA22168C235, 0x4000), (0xC90FDAA22168C235, 0x3FFE),
    (0xAAAAAAAAAAAAAAAB, 0x3FFD), (MASK64, 0x3FFE), (_ONE | 1, 0x3FFF), (_ONE, 0x43FF),
    (_ONE, 0x3C00), (_ONE, 0x3C01), (_ONE, 0x407E), (_ONE, 0x3F80), (0xDE0B6B3A76400000, 0x403A),
    (0xA000000000000000, 0x4002), (_ONE, 0x3FC0), (_ONE, 0x403F), (_ONE, 0x7000), (_ONE, 0x0FFF),
]  # fmt: skip


def f32(rng: Random) -> int:
    how = rng.random()
    if how < 0.6:
        return rng.choice(_F32)
    if how < 0.8:  # near one another, so that results are neither 0 nor infinite
        return rng.getrandbits(1) << 31 | rng.randrange(110, 145) << 23 | rng.getrandbits(23)
    if how < 0.9:
        return int.from_bytes(struct.pack("<f", rng.randrange(-1000, 1000) / 4), "little")
    return rng.getrandbits(32)


def f64(rng: Random) -> int:
    how = rng.random()
    if how < 0.6:
        return rng.choice(_F64)
    if how < 0.8:
        return rng.getrandbits(1) << 63 | rng.randrange(1000, 1050) << 52 | rng.getrandbits(52)
    if how < 0.9:
        return int.from_bytes(struct.pack("<d", rng.randrange(-1000, 1000) / 4), "little")
    return rng.getrandbits(64)


def f80(rng: Random) -> bytes:
    how = rng.random()
    if how < 0.5:
        significand, exponent = rng.choice(_F80)
    elif how < 0.9:
        significand = rng.choice((rng.getrandbits(64), rng.getrandbits(8) << 56)) | _ONE
        exponent = rng.getrandbits(1) << 15 | rng.randrange(0x3FDF, 0x4040)
    elif how < 0.95:
        significand, exponent = rng.getrandbits(64) | _ONE, rng.getrandbits(16)
    else:
        significand, exponent = rng.getrandbits(64), rng.getrandbits(16)
    return significand.to_bytes(8, "little") + exponent.to_bytes(2, "little")


def text(rng: Random) -> bytes:
    """16 bytes for string instructions: few letters, and often an end."""
    alphabet = rng.choice((b"ab", b"abc", b"az09", bytes(range(256))))
    out = bytearray(rng.choice(alphabet) for _ in range(16))
    if rng.random() < 0.2:
        for i in range(1, 16, 2):
            out[i] = 0
    if rng.random() < 0.5:
        out[rng.randrange(16)] = 0
    return bytes(out)


def xmm(rng: Random, hint: str = "") -> bytes:
    """16 bytes of one kind of values: `hint` is "f32", "f64", "text" or nothing in particular."""
    kind = hint or rng.choice(("int", "f32", "f32", "f64", "f64", "text", "random"))
    if kind == "f32":
        return b"".join(f32(rng).to_bytes(4, "little") for _ in range(4))
    if kind == "f64":
        return b"".join(f64(rng).to_bytes(8, "little") for _ in range(2))
    if kind == "text":
        return text(rng)
    if kind == "int":
        size = rng.choice((1, 2, 4, 8))
        return b"".join(
            (integer(rng) & (1 << 8 * size) - 1).to_bytes(size, "little") for _ in range(16 // size)
        )
    return rng.randbytes(16)


def pattern_page(rng: Random) -> bytes:
    """A page of values of all kinds: 16-byte units, so that an aligned operand finds whole ones."""
    out = bytearray()
    while len(out) < 4096:
        if rng.random() < 0.15:
            out += f80(rng).ljust(16, b"\0")
        elif rng.random() < 0.1:  # packed decimal
            out += bytes(rng.randrange(10) << 4 | rng.randrange(10) for _ in range(9))
            out += bytes((rng.choice((0, 0x80)),)) + bytes(6)
        else:
            out += xmm(rng)
    return bytes(out)


def fxsave(rng: Random, *, plain: bool) -> bytes:
    """A state of x87 and SSE; `plain` as a program has it that never changed a control word."""
    if plain or rng.random() < 0.6:
        fcw = 0x37F
    else:
        masks = 0x3F if rng.random() < 0.7 else rng.getrandbits(6)
        fcw = 0x40 | masks | rng.choice((0, 2, 3, 3)) << 8 | rng.randrange(4) << 10
    if plain or rng.random() < 0.5:
        mxcsr = 0x1F80
    else:
        masks = 0x3F if rng.random() < 0.7 else rng.getrandbits(6)
        mxcsr = masks << 7 | rng.randrange(4) << 13
        if rng.random() < 0.3:
            mxcsr |= 0x8000
        if rng.random() < 0.3:
            mxcsr |= 0x40
        if rng.random() < 0.2:
            mxcsr |= rng.getrandbits(6)
    how = rng.random()
    ftw = 0xFF if how < 0.4 else 0 if how < 0.5 else rng.getrandbits(8)
    fsw = rng.randrange(8) << 11
    if rng.random() < 0.3:
        fsw |= rng.getrandbits(4) & 7 << 8 | (rng.getrandbits(1) << 14)
    if rng.random() < 0.15:
        flags = rng.getrandbits(6)
        if rng.random() < 0.8:
            flags &= fcw
        fsw |= flags
        if flags & ~fcw & 0x3F:
            fsw |= 0x8080
    out = struct.pack("<HHBxHQQII", fcw, fsw, ftw, 0, 0, 0, mxcsr, 0xFFFF)
    for _ in range(8):
        out += f80(rng).ljust(16, b"\0")
    for _ in range(16):
        out += xmm(rng)
    return out.ljust(512, b"\0")
