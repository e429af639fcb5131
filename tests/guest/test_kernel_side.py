"""What programs make the kernel do for itself: its own memory, sleeping on pages and locks, sharing
and replacing address spaces, and what it does when memory is short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dfvm import PIPE, Machine
from dfvm.lwkt.lwkt_thread import Deadlock
from dfvm.vm import probe
from dfvm.vm.pmap import pmap_remove
from dfvm.vm.vm import VM_SUBSYS_PIPE, VM_SUBSYS_STACK
from dfvm.vm.vm_kern import kcopyin, kva_to_pa
from dfvm.vm.vm_map_entry import (
    MAP_ENTRY_IN_TRANSITION,
    MAP_ENTRY_KSTACK,
    MAP_ENTRY_NEEDS_WAKEUP,
    VM_MAPTYPE_SUBMAP,
)
from dfvm.vm.vm_page import (
    PBUSY_WANTED,
    PHYS_TO_VM_PAGE,
    vm_page_busy_try,
    vm_page_wakeup,
)
from dfvm.vm.vm_param import UPAGES
from tests.guest.watch import PAGE, Look, watch, watch_same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dfvm.vm.vm_map_entry import VmMap, VmMapEntry
    from dfvm.vm.vm_page import VmPage


def submaps(map: VmMap) -> list[VmMap]:
    return [e.sub_map for e in map if e.maptype == VM_MAPTYPE_SUBMAP and e.sub_map is not None]


def stacks(look: Look) -> list[VmMapEntry]:
    return [e for e in look.vm.kernel_map if e.id == VM_SUBSYS_STACK]


@pytest.mark.spec("KERN-1")
def test_every_thread_has_a_kernel_stack_with_a_guard(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int]:
        for p in look.kernel.procs.values():
            for lp in p.p_lwps.values():
                kva = lp.lwp_stack.ks_kva
                (entry,) = (e for e in stacks(look) if e.ba.start <= kva < e.ba.end)
                assert entry.eflags & MAP_ENTRY_KSTACK
                assert entry.wired_count
                pmap = look.vm.kernel_pmap
                base = pmap.pm_pt[kva >> 21]
                ptes = [pmap.q[base + (kva >> 12 & 511) + i] for i in range(UPAGES + 1)]
                assert ptes[0] == 0  # the guard
                for i in range(1, UPAGES + 1):
                    m = PHYS_TO_VM_PAGE(look.vm, kva_to_pa(look.vm, kva + i * PAGE))
                    assert m is not None
                    assert m.object is look.vm.kernel_object
                    assert m.pindex == kva + i * PAGE >> 12
                    assert m.wire_count == 1
        pages = sum(e.ba.end - e.ba.start for e in stacks(look)) // PAGE
        threads = sum(len(p.p_lwps) for p in look.kernel.procs.values())
        return pages, threads, look.counts().v_wire_count

    seen = watch_same(guest_bin / "kernel_memory", at=at)
    (one, threads, wired), (five, more_threads, more_wired) = seen.one(2), seen.one(3)
    assert (threads, more_threads) == (1, 5)
    assert one == UPAGES + 1
    assert five == 5 * (UPAGES + 1)
    assert more_wired - wired >= 4 * UPAGES


@pytest.mark.spec("KERN-1", "MAP-15")
def test_a_pipes_bytes_lie_in_a_submap_of_the_kernels(guest_bin: Path) -> None:
    def at(look: Look) -> bytes:
        found = [
            (e, map) for map in submaps(look.vm.kernel_map) for e in map if e.id == VM_SUBSYS_PIPE
        ]
        text = b""
        for e, map in found:
            assert map.min_addr <= e.ba.start < e.ba.end <= map.max_addr
            text += kcopyin(look.vm, e.ba.start, e.ba.end - e.ba.start)
        return text

    seen = watch_same(guest_bin / "kernel_memory", at=at)
    assert seen.one(1) == b""  # a pipe that was never written to has no memory
    assert b"in the pipe's own page" in seen.one(2)


@pytest.mark.spec("KERN-1", "MAP-15")
def test_the_arguments_of_an_exec_lie_in_a_submap(guest_bin: Path) -> None:
    """They come with page faults of the kernel's on its own map, and are gone afterwards."""
    exec_map: list[tuple[int, int]] = []

    def at(look: Look) -> tuple[int, int]:
        map = look.kernel.exec_map
        assert map in submaps(look.vm.kernel_map)
        assert map.pmap is look.vm.kernel_pmap
        exec_map.append((map.min_addr, map.max_addr))
        return map.nentries, map.timestamp

    seen = watch_same(guest_bin / "kernel_memory", at=at, faults=True)
    assert seen.one(4)[0] == seen.one(9)[0] == 0
    assert seen.one(9)[1] > seen.one(4)[1]
    low, high = exec_map[0]
    faults = [f for f in seen.faults if low <= f.va < high]
    assert faults
    assert all(f.how & probe.HOW_KERNEL and f.how & probe.HOW_ZFOD for f in faults)


@pytest.mark.spec("SPACE-3")
def test_exec_replaces_the_space_and_vfork_shares_it(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[int, int, int, int]:
        space = look.proc.p_vmspace
        return id(space), space.vm_refcnt, look.pmap.pm_pml4, look.proc.p_pid

    seen = watch_same(guest_bin / "kernel_memory", at=at)
    parent, child, after, new = (seen.one(tag) for tag in (3, 4, 5, 9))
    assert child[:3] == (parent[0], 2, parent[2])
    assert child[3] != parent[3]
    assert after[:3] == (parent[0], 1, parent[2])
    assert new[3] == child[3]
    assert new[1] == 1
    assert new[2] != parent[2]


def sleepers(look: Look) -> dict[str, Any]:
    """The threads of programs that sleep, by what they wait for."""
    threads = [lp.lwp_thread for p in look.kernel.procs.values() for lp in p.p_lwps.values()]
    return {td.td_wmesg: td for td in threads if td.td_wchan is not None}


class HoldUp:
    """Keeps a page busy from a look on until what is expected has come about."""

    def __init__(self, look: Look, m: VmPage, wmesg: str, found: Callable[[Any], None]) -> None:
        assert not vm_page_busy_try(look.vm, m, True)
        self.look, self.m, self.wmesg, self.found = look, m, wmesg, found
        self.patience = 400
        self._again()

    def _again(self) -> None:
        self.look.vm.sched.callout(5_000_000, self._poll)

    def _poll(self) -> None:
        td = sleepers(self.look).get(self.wmesg)
        self.patience -= 1
        if td is not None:
            self.found(td)
        elif self.patience:
            self._again()
            return
        vm_page_wakeup(self.look.vm, self.m)


def hold_up(guest_bin: Path, at: Callable[[Look, list[Any]], None]) -> list[Any]:
    notes: list[Any] = []
    seen = watch_same(guest_bin / "hold_up", at=lambda look: at(look, notes))
    assert seen.stdout == b"helper 0, B, signal 11\n"
    return notes


@pytest.mark.spec("PAGE-2", "FAULT-3")
def test_a_fault_waits_for_a_busy_page(guest_bin: Path) -> None:
    def at(look: Look, notes: list[Any]) -> None:
        if look.tag == 1:
            m = look.page(look.a + PAGE)
            pmap_remove(look.pmap, look.a + PAGE, look.a + 2 * PAGE)

            def found(td: Any) -> None:
                notes.append((td.td_wchan is m, m.busy_count & PBUSY_WANTED, td.td_toks,
                              td.td_locks, look.vm.kernel_object.hold_count))  # fmt: skip

            notes.append(look.counts())
            HoldUp(look, m, "vmpfw", found)
        elif look.tag == 2:
            m = look.page(look.a + PAGE)
            assert m.busy_count == 0
            notes.append(look.counts())

    before, asleep, after = hold_up(guest_bin, at)
    assert asleep == (True, PBUSY_WANTED, [], [], 0)  # it has given back all it held
    took = after - before
    assert took["v_intrans"] == 1
    assert took["v_vm_faults"] == 1  # one fault, tried twice


@pytest.mark.spec("LOCK-1", "LOCK-2", "MAP-19", "MAP-18")
def test_msync_keeps_its_lock_and_lends_its_tokens_while_it_sleeps(guest_bin: Path) -> None:
    """msync sleeps on a busy page of the file, with the map locked shared and tokens taken. The
    other process in the same space, which wants to map something, has to wait for the lock; faults
    and everything else that takes the tokens goes on."""

    def at(look: Look, notes: list[Any]) -> None:
        if look.tag == 3:
            object = look.chain(look.a)[0].object
            assert object is not None
            lock = look.map.lock

            def found(waiter: Any) -> None:
                holder = look.lwp.lwp_thread
                tokens = {ref.tok for ref in holder.td_toks}
                notes.append((
                    look.map.token in tokens, object.token in tokens, lock.lk_shared,
                    lock in holder.td_locks, waiter is not holder, holder.td_wchan is not None,
                    look.map.timestamp,
                ))  # fmt: skip

            HoldUp(look, object.rb_memq[2], "vm_maplk", found)
        elif look.tag == 6:
            notes.append((look.map.timestamp, look.lwp.lwp_thread.td_locks))

    asleep, mapped = hold_up(guest_bin, at)
    assert asleep[:6] == (True, True, 1, True, True, True)
    assert mapped == (asleep[6] + 1, [])


@pytest.mark.spec("MAP-6", "SPACE-3")
def test_munmap_waits_for_an_entry_in_transition(guest_bin: Path) -> None:
    """mlock sleeps on a page with the map unlocked and the entry in transition; munmap by the
    other process of the space waits until it is done, then takes all away."""

    def at(look: Look, notes: list[Any]) -> None:
        if look.tag == 7:
            m = look.page(look.a + PAGE)
            entry = look.entry(look.a)

            def found(waiter: Any) -> None:
                flags = MAP_ENTRY_IN_TRANSITION | MAP_ENTRY_NEEDS_WAKEUP
                notes.append((
                    entry.eflags & flags == flags, look.map.lock.lk_holder, look.map.lock.lk_shared,
                    waiter is not look.lwp.lwp_thread, look.proc.p_vmspace.vm_refcnt,
                    look.pmap.pm_stats.wired_count,
                ))  # fmt: skip

            HoldUp(look, m, "vment", found)
        elif look.tag == 9:
            notes.append((look.entries(look.a, look.a + look.b * PAGE),
                          look.pmap.pm_stats.wired_count))  # fmt: skip

    asleep, gone = hold_up(guest_bin, at)
    assert asleep == (True, None, 0, True, 2, 1)
    assert gone == ([], 0)


@pytest.mark.spec("LOCK-4")
def test_who_waits_for_ever_is_reported(guest_bin: Path) -> None:
    with Machine(check=True, env={}) as m:
        p = m.spawn([str(guest_bin / "blocked"), "for ever"], stdin=b"", stdout=PIPE, stderr=PIPE)
        with pytest.raises(Deadlock) as caught:
            m.run()
        assert str(caught.value).count("piperd") == 2
        assert p.exit_status is None
        m.check()


@pytest.mark.spec("LOCK-4", "LOCK-1")
def test_sleepers_hold_nothing_and_time_wakes_them(guest_bin: Path) -> None:
    def at(look: Look) -> tuple[list[str], int]:
        asleep = sleepers(look)
        held = sum(len(td.td_toks) + len(td.td_locks) for td in asleep.values())
        return list(asleep), held

    seen = watch_same(guest_bin / "blocked", at=at)
    assert seen.one(1) == (["piperd"], 0)  # the other one, while this one has just slept


@pytest.mark.spec("PAGE-14", "PAGE-4")
def test_out_of_memory_kills_the_largest_and_says_so(
    guest_bin: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lowest: list[int] = []

    def note(fault: probe.FaultRecord) -> None:
        lowest.append(fault.vm.gd.gd_vmstats.v_free_count)

    def at(look: Look) -> tuple[int, int, Any]:
        stats = look.vm.gd.gd_vmstats
        return stats.v_free_reserved, stats.v_page_count, look.counts()

    seen = watch(guest_bin / "eat", "60", at=at, mem="32M", faults=note)
    assert (seen.status, seen.stdout) == (0, b"child 137\n")
    err = capfd.readouterr().err
    assert err.count("out of memory: killed process") == 1
    assert "(eat)" in err
    reserved, total, counts = seen.one(2)
    assert min(lowest) >= reserved  # user memory never comes out of the reserve
    assert min(lowest) < total // 20  # and all else was used
    assert counts.v_pdwakeups > 0
    assert counts.v_free_count > total * 3 // 4  # the victim's memory is free again


@pytest.mark.spec("PAGE-14")
def test_who_needs_memory_waits_until_the_victim_is_gone(
    guest_bin: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 32 MiB one child has 18 when the other wants 14. The larger one goes; the other one, whose
    fault met the end of memory, slept meanwhile and was woken."""
    seen = watch(guest_bin / "eat", "18", "14", at=lambda look: look.counts(), mem="32M")
    assert seen.stdout == b"child 137\nchild 0\n"
    assert seen.status == 0
    assert capfd.readouterr().err.count("out of memory") == 1
    assert seen.one(1).v_ppwakeups > 0


@pytest.mark.spec("PAGE-14")
def test_nobody_is_killed_when_memory_suffices(
    guest_bin: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = watch_same(guest_bin / "eat", "12", "12", at=lambda look: look.counts(), mem="32M")
    assert seen.stdout == b"child 0\nchild 0\n"
    assert capfd.readouterr().err == ""
