"""Tokens: serialisation that ends where its holder sleeps.

Holding a token means: nobody else touches what it protects until I block. LWKT gives a thread's
tokens up when it leaves the CPU and takes all of them again before it goes on, in whatever order
is possible, which is why any number may be held and no order can deadlock.

The kernel runs one thread at a time, and a thread that does not run holds nothing. So a token is
always free for the one thread that asks, taking it again after a sleep never waits, and what is
left to do is the part that finds bugs: who holds what, for assertions, and the one conflict a
thread can have, with itself (it holds a token shared and wants it exclusive, which in LWKT waits
for ever).

Source: DragonFly sys/kern/lwkt_token.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfvm.lwkt.panic import panic

if TYPE_CHECKING:
    from dfvm.lwkt.lwkt_thread import Scheduler


class TokenRef:
    """One way of holding a token; what a thread's td_toks lists."""

    __slots__ = ("shared", "tok")

    tok: Token
    shared: bool

    def __init__(self, tok: Token, shared: bool) -> None:
        self.tok = tok
        self.shared = shared


class Token:
    """A token. Made by whoever embeds it; never destroyed explicitly."""

    __slots__ = ("desc", "t_excl", "t_sched", "t_shared")

    desc: str  # for people
    t_sched: Scheduler
    t_excl: TokenRef  # stands in td_toks for an exclusive acquisition
    t_shared: TokenRef  # and for a shared one

    def __init__(self, sched: Scheduler, desc: str) -> None:
        self.t_sched = sched
        self.desc = desc
        self.t_excl = TokenRef(self, False)
        self.t_shared = TokenRef(self, True)

    def __repr__(self) -> str:
        return f"<Token {self.desc}>"


def lwkt_gettoken(tok: Token) -> None:
    """Take `tok` exclusively; recursive. Does not block."""
    toks = tok.t_sched.curthread.td_toks
    if toks and tok.t_shared in toks and tok.t_excl not in toks:
        panic(f"lwkt_gettoken: {tok.desc} is held shared and wanted exclusive by the same thread")
    toks.append(tok.t_excl)


def lwkt_gettoken_shared(tok: Token) -> None:
    """Take `tok` shared; under an exclusive hold of one's own that adds nothing. Does not block."""
    tok.t_sched.curthread.td_toks.append(tok.t_shared)


def lwkt_trytoken(tok: Token) -> bool:
    """Take `tok` exclusively if that needs no waiting."""
    toks = tok.t_sched.curthread.td_toks
    if tok.t_shared in toks and tok.t_excl not in toks:
        return False
    toks.append(tok.t_excl)
    return True


def lwkt_reltoken(tok: Token) -> None:
    """Give `tok` back: the last acquisition of it, which must be the last of any token."""
    toks = tok.t_sched.curthread.td_toks
    if not toks or toks[-1].tok is not tok:
        panic(f"lwkt_reltoken: {tok.desc} is not the last token taken")
    toks.pop()


def token_is_held(tok: Token) -> bool:
    """Whether the current thread holds `tok`, shared or exclusive."""
    toks = tok.t_sched.curthread.td_toks
    return tok.t_excl in toks or tok.t_shared in toks


def token_is_held_exclusive(tok: Token) -> bool:
    """Whether the current thread holds `tok` exclusively."""
    return tok.t_excl in tok.t_sched.curthread.td_toks
