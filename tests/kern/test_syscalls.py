"""The table of system calls, and what happens to calls that make no sense."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfvm import PIPE, Machine
from dfvm.kern.abi.linux.syscalls import SYSCALLS
from dfvm.kern.abi.linux.sysent import Sysent
from tests.kern.guest_util import build

KINDS = {
    "fd", "path", "ptr", "size", "off", "int", "uint", "pid", "long", "ulong", "mode", "oflags",
    "prot", "mapflags", "signal",
}  # fmt: skip


def test_table_is_in_order() -> None:
    numbers = [row[0] for row in SYSCALLS]
    assert numbers == sorted(set(numbers))
    names = [row[1] for row in SYSCALLS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", SYSCALLS, ids=lambda row: row[1])
def test_row(row: tuple[int, str, str, str]) -> None:
    """Signatures parse, functions exist and take what the signature says."""
    sysent = Sysent(*row)
    assert len(sysent.args) <= 6
    assert {kind for kind, _ in sysent.args} <= KINDS
    if sysent.module:
        parameters = inspect.signature(sysent.function()).parameters.values()
        if all(p.kind is not p.VAR_POSITIONAL for p in parameters):
            assert len(parameters) == 1 + len(sysent.args)


def test_unknown_calls_are_counted() -> None:
    program = build(r"""
    int main(void) {
        for (int i = 0; i < 3; i++) syscall(SYS_reboot, 0);
        long r = syscall(100000);
        return errno == ENOSYS && r == -1 ? 0 : 1;
    }
    """)
    with Machine() as m:
        p = m.spawn([str(program)], stdin=b"")
        m.run(timeout=600)
        assert p.exit_status == 0
        assert m.kernel.sysent.unknown[169] == 3
        assert m.kernel.sysent.unknown[-1] == 1


# Reads lines of seven numbers, and makes the system calls in a child, which may die of them. What
# waits for ever is cut short.
CALLER = r"""
    int main(void) {
        unsigned long n, a[6];
        static char page[65536];
        mmap((void *)0x10000, 65536, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        mmap((void *)0x30000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0);
        strcpy((char *)0x10000, "/tmp/fuzz");
        while (scanf("%lu %lu %lu %lu %lu %lu %lu", &n, a, a + 1, a + 2, a + 3, a + 4,
                     a + 5) == 7) {
            pid_t p = fork();
            if (!p) {
                setpgid(0, 0);
                alarm(1);
                chdir("/tmp");
                long r = syscall(n, a[0], a[1], a[2], a[3], a[4], a[5]);
                _exit(r < 0);
            }
            while (waitpid(p, 0, WUNTRACED) == p && kill(p, SIGKILL) == 0);
        }
        kill(-1, SIGKILL);
        return 0;
    }
    """

# What sleeps costs a second each. A child that shares memory may make its parent, the caller,
# do anything.
NUMBERS = [row[0] for row in SYSCALLS if row[3] and row[1] not in (
    "pause", "rt_sigsuspend", "nanosleep", "clock_nanosleep", "kill", "vfork", "clone",
    "clone3")]  # fmt: skip

ARGUMENTS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 16, 64, 4096, 0x10000, 0x10008, 0x11000, 0x30000, 0x30FFC,
                     0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
                     (1 << 64) - 100, 0x7FFF_FFFF_E000, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_8000_0000]),
    st.integers(0, 300),
    st.integers(0, (1 << 64) - 1),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    calls=st.lists(st.tuples(st.sampled_from(NUMBERS), *[ARGUMENTS] * 6), min_size=1, max_size=40)
)
def test_random_calls(calls: list[tuple[int, ...]]) -> None:
    """The machine survives whatever a program asks for."""
    lines = "\n".join(" ".join(map(str, call)) for call in calls)
    with Machine(mem="64M") as m:
        p = m.spawn([str(build(CALLER))], stdin=lines.encode(), stdout=PIPE, stderr=PIPE)
        m.run(timeout=600)
        assert p.exit_status == 0
        m.check()
