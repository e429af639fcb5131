"""Limits, usage, priorities."""

from __future__ import annotations

from errno import EACCES, EFAULT, EINVAL, EPERM, ESRCH
from struct import pack, unpack
from typing import TYPE_CHECKING

from user_util import PAGE, User

from dfvm.kern import kern_resource as kr
from dfvm.kern import sys_mman
from dfvm.kern.proc import RLIMIT_CORE, RLIMIT_NICE, RLIMIT_NOFILE
from dfvm.vm.vm_proc import RLIMIT_DATA, RLIMIT_STACK, RLIMIT_VMEM
from tests.kern.guest_util import same

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel

INF = (1 << 64) - 1
BAD = 0x1234_5000


def limit(user: User, which: int) -> tuple[int, int]:
    at = user.put(bytes(16))
    assert user.call(kr.sys_getrlimit, which, at) == 0
    soft, hard = unpack("<QQ", user.read(at, 16))
    return soft, hard


def set_limit(user: User, which: int, soft: int, hard: int) -> int:
    return user.call(kr.sys_setrlimit, which, user.put(pack("<QQ", soft, hard)))


def test_limits_are_told_and_set(user: User) -> None:
    assert limit(user, RLIMIT_STACK)[0] == 8 << 20
    assert set_limit(user, RLIMIT_CORE, 5, 10) == 0
    assert limit(user, RLIMIT_CORE) == (5, 10)
    assert set_limit(user, RLIMIT_CORE, 11, 10) == -EINVAL
    assert user.call(kr.sys_getrlimit, 16, user.put(b"")) == -EINVAL
    assert set_limit(user, 16, 0, 0) == -EINVAL
    assert user.call(kr.sys_setrlimit, 0, BAD) == user.call(kr.sys_getrlimit, 0, BAD) == -EFAULT
    assert set_limit(user, RLIMIT_NOFILE, 10, (1 << 20) + 1) == -EPERM


def test_only_root_raises_a_hard_limit(nobody: User, kernel: Kernel) -> None:
    assert set_limit(nobody, RLIMIT_CORE, 0, 10) == 0
    assert set_limit(nobody, RLIMIT_CORE, 10, 10) == 0
    assert set_limit(nobody, RLIMIT_CORE, 0, 11) == -EPERM
    root = User(kernel)
    assert set_limit(root, RLIMIT_CORE, 0, 1) == 0
    assert set_limit(root, RLIMIT_CORE, 0, 2) == 0


def test_prlimit(user: User, kernel: Kernel) -> None:
    other, nobody = User(kernel, 7), User(kernel, 8)
    at = user.put(pack("<QQ", 1, 2))
    assert user.call(kr.sys_prlimit64, other.p.p_pid, RLIMIT_CORE, at, at + 16) == 0
    assert unpack("<QQ", user.read(at + 16, 16)) == (0, INF)
    assert other.p.p_limit[RLIMIT_CORE] == (1, 2)
    assert user.call(kr.sys_prlimit64, 0, RLIMIT_CORE, 0, at) == 0
    assert user.call(kr.sys_prlimit64, 77_777, RLIMIT_CORE, 0, at) == -ESRCH
    assert user.call(kr.sys_prlimit64, 0, 16, 0, at) == -EINVAL
    assert user.call(kr.sys_prlimit64, 0, 0, BAD, 0) == -EFAULT
    assert nobody.call(kr.sys_prlimit64, other.p.p_pid, RLIMIT_CORE, 0, 0) == -EPERM
    assert nobody.call(kr.sys_prlimit64, nobody.p.p_pid, RLIMIT_CORE, 0, 0) == 0


def test_memory_limits_take_effect(user: User) -> None:
    def mmap(size: int, prot: int = 3, flags: int = 0x22) -> int:
        return user.call(sys_mman.sys_mmap, 0, size, prot, flags, -1, 0)

    size = user.p.p_vmspace.vm_map.size
    set_limit(user, RLIMIT_VMEM, size + 4 * PAGE, INF)
    assert mmap(5 * PAGE) == -12
    at = mmap(4 * PAGE)
    assert at > 0
    # What MAP_FIXED replaces is given back first.
    assert user.call(sys_mman.sys_mmap, at, 4 * PAGE, 3, 0x32, -1, 0) == at
    set_limit(user, RLIMIT_VMEM, INF, INF)
    set_limit(user, RLIMIT_DATA, 30 * PAGE, INF)
    assert mmap(20 * PAGE) == -12  # the scratch pages count, too
    assert mmap(20 * PAGE, 1) > 0
    assert mmap(20 * PAGE, 3, 0x21) > 0
    assert user.call(sys_mman.sys_mprotect, mmap(20 * PAGE, 1), 20 * PAGE, 3) == -12


def test_usage(user: User) -> None:
    at = user.put(bytes(144))
    user.lp.lwp_thread.user_ns += 1_500_000_000
    user.lp.lwp_thread.td_runtime_ns += 1_500_000_000
    user.p.p_majflt = 3
    user.lp.lwp_nvcsw = 9
    assert user.call(kr.sys_getrusage, 0, at) == 0
    ru = unpack("<18q", user.read(at, 144))
    assert ru[0] == 1 and 500_000 <= ru[1] < 600_000
    assert ru[4] == user.p.p_vmspace.vm_pmap.pm_stats.resident_count * 4
    assert ru[9] == 3
    assert ru[8] == user.p.p_minflt
    assert ru[16] == 9
    assert user.call(kr.sys_getrusage, 1, at) == 0
    user.p.p_cru.ru_minflt = 77
    assert user.call(kr.sys_getrusage, -1, at) == 0
    assert unpack("<18q", user.read(at, 144))[8] == 77
    assert user.call(kr.sys_getrusage, 2, at) == -EINVAL
    assert user.call(kr.sys_getrusage, 0, BAD) == -EFAULT


def test_nice(user: User, kernel: Kernel) -> None:
    assert user.call(kr.sys_getpriority, 0, 0) == 20
    assert user.call(kr.sys_setpriority, 0, 0, 5) == 0
    assert user.p.p_nice == user.lp.lwp_thread.td_nice == 5
    assert user.call(kr.sys_getpriority, 0, user.p.p_pid) == 15
    assert user.call(kr.sys_setpriority, 0, 0, 100) == 0
    assert user.call(kr.sys_getpriority, 0, 0) == 1
    assert user.call(kr.sys_setpriority, 0, 0, -100) == 0
    assert user.call(kr.sys_getpriority, 0, 0) == 40
    assert user.call(kr.sys_getpriority, 1, 0) == 40  # the best of the group
    assert user.call(kr.sys_getpriority, 3, 0) == -EINVAL
    assert user.call(kr.sys_getpriority, 0, 77_777) == -ESRCH
    assert user.call(kr.sys_setpriority, 0, 77_777, 0) == -ESRCH
    other = User(kernel, 7)
    assert user.call(kr.sys_setpriority, 2, 7, 3) == 0
    assert other.p.p_nice == 3
    user.call(kr.sys_setpriority, 0, 0, 0)


def test_nice_rights(nobody: User, kernel: Kernel) -> None:
    root = User(kernel)
    assert nobody.call(kr.sys_setpriority, 0, root.p.p_pid, 5) == -EPERM
    assert nobody.call(kr.sys_setpriority, 0, 0, 5) == 0
    assert nobody.call(kr.sys_setpriority, 0, 0, 4) == -EACCES
    nobody.p.p_limit[RLIMIT_NICE] = (20, 20)  # may go up to nice 0
    assert nobody.call(kr.sys_setpriority, 0, 0, 0) == 0
    assert nobody.call(kr.sys_setpriority, 0, 0, -1) == -EACCES


def test_priorities_of_io() -> None:
    same(r"""
#define RT (1 << 13)
#define BE (2 << 13)
#define IDLE (3 << 13)
static void get(int which, int who) {
    long r = syscall(SYS_ioprio_get, which, who);
    printf("get %d: %ld %d\n", which, r, r < 0 ? errno : 0);
}
static void set(int which, int who, int prio) {
    long r = syscall(SYS_ioprio_set, which, who, prio);
    printf("set %d %x: %ld %d\n", which, prio, r, r < 0 ? errno : 0); get(1, 0);
}
int main() {
    setvbuf(stdout, 0, _IONBF, 0); setpgid(0, 0);
    get(1, 0); get(2, 0); get(0, 0); get(4, 0); get(1, -1); get(1, 9999999); get(3, 12345);
    for (int c = 0; c < 8; c++) {
        set(1, 0, c << 13); set(1, 0, c << 13 | 3); set(1, 0, c << 13 | 8); get(2, 0);
    }
    set(1, 0, 0x10000); set(1, 0, -1); set(5, 0, BE); set(1, 9999999, BE); set(2, 0, BE | 5);
    if (geteuid()) return 0;
    if (!fork()) {
        get(1, 0); get(2, 0); set(1, 0, IDLE); get(2, 0); set(1, 0, 0); setpriority(0, 0, 5);
        get(2, 0); setresuid(77, 77, 77); set(1, 0, RT); set(1, 0, BE | 2); set(1, getppid(), BE);
        set(2, 0, BE | 6); get(3, 77); set(3, 77, BE | 1); _exit(0);
    }
    wait(0); get(1, 0); set(1, 0, 0); setpriority(0, 0, -5); get(2, 0);
    struct sched_param p = {1}; sched_setscheduler(0, SCHED_FIFO, &p); get(2, 0);
    return 0;
}""")  # fmt: skip
