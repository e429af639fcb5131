"""What the system is, prctl, random bytes."""

from __future__ import annotations

import struct
from errno import EFAULT, EINVAL, ENODEV, ENOSYS, EPERM, ESRCH
from typing import TYPE_CHECKING

from guest_util import build, by_guest
from user_util import User

from dfvm.kern import sys_futex as fx
from dfvm.kern import sys_misc as sm
from dfvm.kern import sys_prctl as pr

if TYPE_CHECKING:
    from dfvm.kern.kernel import Kernel

BAD = 0x1234_5000


def fields(user: User, at: int, fmt: str) -> tuple[int, ...]:
    return struct.unpack(fmt, user.read(at, struct.calcsize(fmt)))


def test_uname_and_host_name(user: User, nobody: User) -> None:
    at = user.put(bytes(390))
    assert user.call(sm.sys_uname, at) == 0
    names = [user.read(at + n * 65, 65).split(b"\0")[0] for n in range(6)]
    assert names[0] == b"Linux" and names[4] == b"x86_64"
    user.write(at + 1000, b"dragonfly")
    assert user.call(sm.sys_sethostname, at + 1000, 6) == 0
    assert user.call(sm.sys_setdomainname, at + 1000, 9) == 0
    nobody.call(sm.sys_uname, nobody.put(bytes(390)))
    assert nobody.read(at + 65, 7) == b"dragon\0"
    assert nobody.read(at + 5 * 65, 10) == b"dragonfly\0"
    assert nobody.call(sm.sys_sethostname, at, 1) == -EPERM
    assert user.call(sm.sys_sethostname, at, 65) == user.call(sm.sys_sethostname, at, -1) == -EINVAL
    assert user.call(sm.sys_sethostname, BAD, 3) == user.call(sm.sys_uname, BAD) == -EFAULT


def test_sysinfo(user: User) -> None:
    at = user.put(bytes(112))
    assert user.call(sm.sys_sysinfo, at) == 0
    info = fields(user, at, "<q3Q6QHxxxxxx2QI")
    assert 60 << 20 < info[4] <= 64 << 20
    assert 0 < info[5] < info[4]
    assert info[10] == len(user.kernel.procs)
    assert info[13] == 1
    assert user.call(sm.sys_sysinfo, BAD) == -EFAULT


def test_getrandom(user: User) -> None:
    at = user.put(bytes(64))
    assert user.call(sm.sys_getrandom, at, 32, 0) == 32
    assert user.read(at, 32) != bytes(32) and user.read(at + 32, 32) == bytes(32)
    assert user.call(sm.sys_getrandom, at, 0, 3) == 0
    assert user.call(sm.sys_getrandom, at, 1, 8) == user.call(sm.sys_getrandom, at, 1, 6) == -EINVAL
    assert user.call(sm.sys_getrandom, BAD, 1, 0) == -EFAULT


def test_arch_prctl(user: User) -> None:
    at = user.put(bytes(8))
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_FS, 0x1000) == 0
    assert user.lp.ctx.fs_base == 0x1000
    assert user.call(sm.sys_arch_prctl, sm.ARCH_GET_FS, at) == 0
    assert fields(user, at, "<Q") == (0x1000,)
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_GS, 0x2000) == 0
    assert user.lp.ctx.gs_base == 0x2000
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_FS, 1 << 47) == -EPERM
    assert user.call(sm.sys_arch_prctl, sm.ARCH_GET_FS, BAD) == -EFAULT
    assert user.call(sm.sys_arch_prctl, sm.ARCH_GET_CPUID, 0) == 1
    assert user.call(sm.sys_arch_prctl, sm.ARCH_SET_CPUID, 0) == -ENODEV
    assert user.call(sm.sys_arch_prctl, 0x3001, at) == -EINVAL


def test_thread_state(user: User, kernel: Kernel) -> None:
    assert user.call(sm.sys_set_tid_address, 0x4000) == user.lp.lwp_tid
    assert user.lp.lwp_clear_tid == 0x4000
    assert user.call(fx.sys_set_robust_list, 0x5000, 24) == 0
    assert user.call(fx.sys_set_robust_list, 0x5000, 25) == -EINVAL
    at = user.put(bytes(16))
    assert user.call(fx.sys_get_robust_list, 0, at, at + 8) == 0
    assert fields(user, at, "<QQ") == (0x5000, 24)
    assert user.call(fx.sys_get_robust_list, 77_777, at, at) == -ESRCH
    nobody = User(kernel, 9)
    assert nobody.call(fx.sys_get_robust_list, user.p.p_pid, at, at) == -EPERM
    assert user.call(sm.sys_getcpu, at, at + 4, 0) == 0
    assert fields(user, at, "<II") == (0, 0)
    assert user.call(sm.sys_personality, 0xFFFF_FFFF) == 0
    assert user.call(sm.sys_personality, 0x0040_0000) == 0
    assert user.call(sm.sys_personality, 0xFFFF_FFFF) == 0x0040_0000
    assert user.call(sm.sys_rseq, 0, 0, 0, 0) == -ENOSYS


def prctl(user: User, *args: int) -> int:
    return user.call(pr.sys_prctl, *args, *[0] * (5 - len(args)))


def test_prctl(user: User) -> None:
    at = user.put(b"a name that is too long\0")
    assert prctl(user, pr.PR_SET_NAME, at) == 0
    assert user.p.p_comm == "a name that is "
    assert prctl(user, pr.PR_GET_NAME, at + 64) == 0
    assert user.read(at + 64, 16) == b"a name that is \0"
    assert prctl(user, pr.PR_SET_NAME, user.put(b"sh\0")) == 0
    assert user.p.p_comm == "sh"
    assert prctl(user, pr.PR_SET_PDEATHSIG, 15) == 0
    assert prctl(user, pr.PR_GET_PDEATHSIG, at) == 0
    assert fields(user, at, "<I") == (15,)
    assert prctl(user, pr.PR_SET_PDEATHSIG, 65) == -EINVAL
    assert prctl(user, pr.PR_SET_DUMPABLE, 0) == 0 == prctl(user, pr.PR_GET_DUMPABLE)
    assert prctl(user, pr.PR_SET_DUMPABLE, 2) == -EINVAL
    assert prctl(user, pr.PR_SET_NO_NEW_PRIVS, 2) == -EINVAL
    assert prctl(user, pr.PR_SET_NO_NEW_PRIVS, 1) == 0
    assert prctl(user, pr.PR_GET_NO_NEW_PRIVS) == 1
    assert prctl(user, pr.PR_SET_CHILD_SUBREAPER, 1) == 0
    assert prctl(user, pr.PR_GET_CHILD_SUBREAPER, at) == 0
    assert fields(user, at, "<I") == (1,)
    assert prctl(user, pr.PR_CAPBSET_READ, 40) == 1
    assert prctl(user, pr.PR_CAPBSET_READ, 41) == -EINVAL
    assert prctl(user, 12345) == -EINVAL
    assert prctl(user, pr.PR_SET_NAME, BAD) == prctl(user, pr.PR_GET_NAME, BAD) == -EFAULT


def test_membarrier() -> None:
    program = build(r"""
static int m(int cmd, int flags) {
    int r = syscall(SYS_membarrier, cmd, flags, 0);
    return r < 0 ? -errno : r;
}
int main(int argc, char **argv) {
    if (m(0, 0) != 0x27f || m(0, 1) != -EINVAL || m(1, 0) || m(2, 0)) return 1;
    if (argc == 1) {
        if (m(8, 0) != -EPERM || m(0x20, 0) != -EPERM || m(0x200, 0) || m(16, 0) || m(8, 0))
            return 2;
        if (m(0x20, 0) != -EPERM || m(0x40, 0) || m(0x20, 0) || m(4, 0)) return 3;
        if (m(0x80, 0) != -EINVAL || m(0x400, 0) != -EINVAL || m(3, 0) != -EINVAL) return 4;
        int status;
        if (!fork()) _exit(m(0x200, 0) != 0x54);
        wait(&status);
        if (status || m(0x200, 0) != 0x54) return 5;
        execl("/proc/self/exe", argv[0], "again", NULL);
    }
    return m(0x200, 0) || m(8, 0) != -EPERM;
}""")  # fmt: skip
    assert by_guest(program)[0] == 0
