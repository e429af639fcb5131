"""Tokens."""

from __future__ import annotations

import pytest

from dfvm.lwkt.lwkt_thread import Scheduler
from dfvm.lwkt.lwkt_token import (
    Token,
    lwkt_gettoken,
    lwkt_gettoken_shared,
    lwkt_reltoken,
    lwkt_trytoken,
    token_is_held,
    token_is_held_exclusive,
)
from dfvm.lwkt.panic import Panic

pytestmark = pytest.mark.spec("LOCK-1")


def test_given_up_while_asleep_and_held_again_after(sched: Scheduler) -> None:
    tok = Token(sched, "vm object")
    trace: list[str] = []

    def holder() -> None:
        lwkt_gettoken(tok)
        trace.append("a in")
        sched.tsleep("x", 0, "x")
        assert token_is_held_exclusive(tok)
        trace.append("a again")
        lwkt_reltoken(tok)

    def other() -> None:
        assert not token_is_held(tok)
        assert lwkt_trytoken(tok)
        trace.append("b in")
        sched.wakeup("x")
        trace.append("b before a")  # a is awake but b has the CPU, so b has the token
        lwkt_reltoken(tok)

    sched.create(holder)
    sched.create(other)
    sched.run()
    assert trace == ["a in", "b in", "b before a", "a again"]


def test_opposite_orders_do_not_deadlock(sched: Scheduler) -> None:
    one, two = Token(sched, "one"), Token(sched, "two")
    done: list[int] = []

    def worker(first: Token, second: Token) -> None:
        for _ in range(10):
            lwkt_gettoken(first)
            sched.yield_()
            lwkt_gettoken(second)
            sched.yield_()
            assert token_is_held(first) and token_is_held(second)
            lwkt_reltoken(second)
            lwkt_reltoken(first)
        done.append(1)

    sched.create(worker, one, two)
    sched.create(worker, two, one)
    sched.run()
    assert done == [1, 1]


def test_recursion_and_sharing(sched: Scheduler) -> None:
    tok = Token(sched, "t")
    lwkt_gettoken(tok)
    lwkt_gettoken(tok)
    lwkt_gettoken_shared(tok)
    lwkt_reltoken(tok)
    lwkt_reltoken(tok)
    assert token_is_held_exclusive(tok)
    lwkt_reltoken(tok)
    assert not token_is_held(tok)

    lwkt_gettoken_shared(tok)
    lwkt_gettoken_shared(tok)
    assert token_is_held(tok)
    assert not token_is_held_exclusive(tok)
    assert not lwkt_trytoken(tok)
    with pytest.raises(Panic, match="held shared and wanted exclusive"):
        lwkt_gettoken(tok)
    lwkt_reltoken(tok)
    lwkt_reltoken(tok)


def test_release_is_last_in_first_out(sched: Scheduler) -> None:
    one, two = Token(sched, "one"), Token(sched, "two")
    with pytest.raises(Panic, match="one is not the last"):
        lwkt_reltoken(one)
    lwkt_gettoken(one)
    lwkt_gettoken(two)
    with pytest.raises(Panic, match="one is not the last"):
        lwkt_reltoken(one)
