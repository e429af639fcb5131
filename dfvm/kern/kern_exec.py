"""execve: a process becomes another program.

    exec_args_copyin   the arguments and the environment, from the old program's memory to the exec
                       submap of kernel_map, since the old memory is about to go
    exec_check         the file: regular, executable, not being written
    image activators   "#!" goes round again with the interpreter; ELF is parsed and checked
    the new space      is filled aside; until then every error leaves the caller as it was
    the change         address space, registers, signal actions, descriptors, credentials

Source: DragonFly sys/kern/kern_exec.c; the stack's contents as Linux fs/binfmt_elf.c.
"""

from __future__ import annotations

from os import fsdecode, fsencode, urandom
from typing import TYPE_CHECKING, Final

from dfvm.kern.abi.linux.args import s32, u32
from dfvm.kern.imgact_elf import PHDR_BYTES, elf_activate, elf_parse
from dfvm.kern.imgact_shell import shell_parse
from dfvm.kern.kern_caps import cap_exec
from dfvm.kern.kern_errno import (
    E2BIG,
    EACCES,
    EFAULT,
    EINVAL,
    EJUSTRETURN,
    ELIBBAD,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOEXEC,
    ENOMEM,
    err,
)
from dfvm.kern.kern_exit import lwp_release_user
from dfvm.kern.kern_fork import vfork_done
from dfvm.kern.kern_path import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW
from dfvm.kern.kern_sig import exec_signals
from dfvm.kern.proc import P_EXEC, maxrss
from dfvm.kern.vfs.mount import ST_NOEXEC, ST_NOSUID
from dfvm.kern.vfs.namei import NAMEI_FOLLOW, PATH_MAX, namei
from dfvm.kern.vfs.vnode_param import FREAD, S_ISGID, S_ISUID, VEXEC, VLNK, VREG
from dfvm.kern.vma import may_map_low
from dfvm.machine.reg import RIP, RSP
from dfvm.vm.copyio import copyin, copyinstr, copyout
from dfvm.vm.pager.vnode_pager import vnode_pager_object, vnode_pager_readpage
from dfvm.vm.vm import (
    KERN_SUCCESS,
    VM_PROT_ALL,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
    VM_SUBSYS_IMGACT,
)
from dfvm.vm.vm_kern import kcopyin, kcopyout, kmem_alloc_wait, kmem_free_wakeup
from dfvm.vm.vm_map import vm_map_stack
from dfvm.vm.vm_page import vm_page_unhold
from dfvm.vm.vm_param import (
    MAXSSIZ,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    SGROWSIZ,
    VM_MAX_USER_ADDRESS,
    round_page,
    trunc_page,
)
from dfvm.vm.vm_proc import RLIMIT_STACK
from dfvm.vm.vmspace import vmspace_alloc, vmspace_free, vmspace_rel

if TYPE_CHECKING:
    from collections.abc import Callable

    from dfvm.kern.imgact_elf import ElfImage
    from dfvm.kern.kernel import Kernel
    from dfvm.kern.proc import Lwp, Proc, Ucred
    from dfvm.kern.vfs.vnode import Vnode
    from dfvm.vm.vmspace import Vmspace

MAX_ARG_STRLEN: Final = 131072  # one string, with its NUL
ARG_MIN: Final = 131072  # room for arguments, however small the stack's limit
ARG_MAX: Final = 6 << 20  # and however large
MAX_INTERP: Final = 5  # scripts that are interpreted by scripts


# The auxiliary vector.
AT_NULL: Final = 0
AT_PHDR: Final = 3
AT_PHENT: Final = 4
AT_PHNUM: Final = 5
AT_PAGESZ: Final = 6
AT_BASE: Final = 7
AT_FLAGS: Final = 8
AT_ENTRY: Final = 9
AT_UID: Final = 11
AT_EUID: Final = 12
AT_GID: Final = 13
AT_EGID: Final = 14
AT_PLATFORM: Final = 15
AT_HWCAP: Final = 16
AT_CLKTCK: Final = 17
AT_SECURE: Final = 23
AT_RANDOM: Final = 25
AT_HWCAP2: Final = 26
AT_EXECFN: Final = 31
AT_MINSIGSTKSZ: Final = 51

_HWCAP: Final = 0x078B_FBFD  # CPUID 1, EDX of the engine's CPU
_HWCAP2: Final = 2  # RDFSBASE and its like may be used
_MINSIGSTKSZ: Final = 1040  # the signal frame with its FXSAVE image, aligned as badly as can be

STACK_TOP: Final = VM_MAX_USER_ADDRESS


class ImageArgs:
    """The strings of an execve, staged in kernel memory: those of argv, then those of envp, each
    with its NUL."""

    __slots__ = ("argc", "argv_bytes", "envc", "kernel", "kva", "size", "used")

    kernel: Kernel
    kva: int  # where they are, in the exec submap
    size: int  # bytes there
    used: int  # bytes of strings
    argc: int
    envc: int
    argv_bytes: int  # length of the argv part

    def __init__(self, kernel: Kernel, argv: list[bytes], envp: list[bytes]) -> None:
        """Stage strings that come without their NULs. May block for room in the submap."""
        self.kernel = kernel
        args = b"".join([s + b"\0" for s in argv])
        data = args + b"".join([s + b"\0" for s in envp])
        self.argc, self.envc = len(argv), len(envp)
        self.argv_bytes, self.used = len(args), len(data)
        # Scripts may add to it: an interpreter, its argument, and a name, a page each.
        self.size = (self.used + PAGE_MASK & ~PAGE_MASK) + (MAX_INTERP + 1) * PAGE_SIZE
        self.kva = kmem_alloc_wait(kernel.exec_map, self.size, VM_SUBSYS_IMGACT)
        try:
            kcopyout(kernel.vm, self.kva, data)
        except OSError:
            self.free()
            raise

    def shift(self, interp: bytes, arg: bytes | None, script: bytes) -> None:
        """Make the arguments of a script those of its interpreter: its own name, the optional
        argument, and the script's name take the place of argv[0]."""
        data = self.strings()
        first = data.index(b"\0") + 1 if self.argc else 0
        head = [interp, script] if arg is None else [interp, arg, script]
        new = b"".join([s + b"\0" for s in head])
        if self.used - first + len(new) > self.size:
            raise err(E2BIG)
        self.argc += len(head) - (1 if self.argc else 0)
        self.argv_bytes += len(new) - first
        self.used += len(new) - first
        kcopyout(self.kernel.vm, self.kva, new + data[first:])

    def strings(self) -> bytes:
        """All of them."""
        return kcopyin(self.kernel.vm, self.kva, self.used)

    def free(self) -> None:
        """Give the memory back and wake whoever waits for some."""
        kmem_free_wakeup(self.kernel.exec_map, self.kva, self.size)


class ImageParams:
    """A file on its way to being executed, and what its activator found out."""

    __slots__ = ("base", "closes", "elf", "entry", "interp", "kernel", "nameless", "phdr",
                 "phnum", "reason", "size", "stack_exec", "start", "vp")  # fmt: skip

    kernel: Kernel
    vp: Vnode  # the file, referenced and marked as text
    size: int  # its length in bytes, as of the beginning
    closes: bool  # its name goes by a descriptor that exec closes
    nameless: bool  # given by its descriptor alone: its process is called after the file
    elf: ElfImage | None  # what the ELF parser made of it
    interp: ImageParams | None  # the program interpreter
    reason: str  # why it is not executable, for people
    phdr: int  # user address of the program headers, 0 when they are not loaded
    phnum: int
    entry: int  # the program's own entry point
    start: int  # where execution begins: there, or in the interpreter
    base: int  # load bias of the interpreter
    stack_exec: bool

    def __init__(self, kernel: Kernel, vp: Vnode) -> None:
        self.kernel = kernel
        self.vp = vp
        self.size = vp.v_filesize
        self.closes = self.nameless = False
        self.elf = None
        self.interp = None
        self.reason = ""

    def read(self, offset: int, count: int) -> bytes:
        """Bytes of the file, through the page cache; fewer at its end. May block."""
        kernel = self.kernel
        obj = vnode_pager_object(kernel.vm, self.vp.vop_data())
        parts = []
        end = min(offset + count, self.size)
        while offset < end:
            base = offset & PAGE_MASK
            n = min(PAGE_SIZE - base, end - offset)
            m = vnode_pager_readpage(obj, offset >> PAGE_SHIFT)
            at = m.phys_addr + base
            parts.append(bytes(kernel.ram.mem[at : at + n]))
            vm_page_unhold(kernel.vm, m)
            offset += n
        return b"".join(parts)

    def malformed(self, reason: str) -> OSError:
        """ENOEXEC with an explanation."""
        self.reason = reason
        error = err(ENOEXEC)
        error.strerror = f"{error.strerror}: {reason}"
        return error

    def release(self) -> None:
        """The file is no longer looked at."""
        self.vp.cleartext()
        self.vp.vrele()


# ---- arguments -----------------------------------------------------------------------------------


def _arg_limit(p: Proc) -> int:
    return max(min(p.p_rlimit(RLIMIT_STACK) // 4, ARG_MAX), ARG_MIN)


def _copyin_strings(space: Vmspace, uaddr: int, room: int) -> tuple[list[bytes], int]:
    """The strings of an argv or envp at `uaddr` (0: none), and what is left of `room` bytes."""
    strings: list[bytes] = []
    pointers: memoryview = memoryview(b"")
    at = 0
    while uaddr:
        if at == len(pointers):
            # As many pointers at a time as the page has: one copy for a usual argv.
            count = max((PAGE_SIZE - (uaddr & PAGE_MASK)) // 8, 1)
            pointers = memoryview(copyin(space, uaddr, 8 * count)).cast("Q")
            uaddr += 8 * count
            at = 0
        pointer = pointers[at]
        at += 1
        if pointer == 0:
            break
        try:
            string = copyinstr(space, pointer, MAX_ARG_STRLEN)
        except OSError as e:
            raise err(E2BIG if e.errno == ENAMETOOLONG else EFAULT) from None
        strings.append(string)
        room -= len(string) + 1 + 8
        if room < 0:
            raise err(E2BIG)
    return strings, room


def exec_args_copyin(lp: Lwp, uargv: int, uenvp: int, path: bytes) -> ImageArgs:
    """Stage the arguments of an execve by `lp`.

    :raises OSError: EFAULT, E2BIG.
    """
    p = lp.lwp_proc
    space = p.p_vmspace
    argv, room = _copyin_strings(space, uargv, _arg_limit(p) - len(path) - 1)
    envp, _ = _copyin_strings(space, uenvp, room)
    # Programs believe that there is an argv[0]; Linux makes sure of it.
    return ImageArgs(p.kernel, argv or [b""], envp)


def exec_args_given(p: Proc, argv: list[bytes], envp: list[bytes], path: bytes) -> ImageArgs:
    """Stage arguments that come from outside the machine, by the same rules.

    :raises OSError: E2BIG.
    """
    strings = [*argv, *envp]
    size = len(path) + 1 + sum(len(string) + 1 + 8 for string in strings)
    if size > _arg_limit(p) or any(len(string) >= MAX_ARG_STRLEN for string in strings):
        raise err(E2BIG)
    return ImageArgs(p.kernel, argv, envp)


# ---- the file ------------------------------------------------------------------------------------


def exec_check(p: Proc, vp: Vnode) -> ImageParams:
    """Make sure that `p` may execute `vp`, and hold on to it. May block.

    :raises OSError: EACCES, ETXTBSY.
    """
    if vp.v_type == VLNK:
        raise err(ELOOP)
    if vp.v_type != VREG or vp.v_mount.mnt_flags & ST_NOEXEC:
        raise err(EACCES)
    cred = p.p_ucred
    vp.open(FREAD, cred)  # has the file system look whether the file is still what it was
    try:
        vp.access(VEXEC, cred)
        vp.settext()
        vp.vref()
    finally:
        vp.close(FREAD)
    return ImageParams(p.kernel, vp)


def _lookup(p: Proc, path: bytes, start: Vnode | None, flags: int) -> Vnode:
    fs = p.p_fs
    cdir = start if start is not None else fs.fs_cdir
    return namei(fs.fs_rdir, cdir, path, p.p_ucred, flags)


def _find_image(p: Proc, image: ImageParams, args: ImageArgs, path: bytes) -> ImageParams:
    """Follow "#!" lines from `image`, adjusting the arguments, to a program, and check that.

    :raises OSError: what makes it impossible; nothing is held then, `image` included.
    """
    for _ in range(MAX_INTERP + 1):
        try:
            head = image.read(0, 256)
            if head[:2] != b"#!":
                if head[:4] != b"\x7fELF":
                    raise image.malformed("neither an ELF file nor a script")
                image.elf = elf_parse(image)
                if image.elf.interp is not None:
                    image.interp = _open_interp(p, image.elf.interp)
                return image
            interp, arg = shell_parse(image, head)
            if image.closes:
                raise err(ENOENT)  # the interpreter would not find its script
            args.shift(interp, arg, path)
        except BaseException:
            image.release()
            raise
        image.release()
        path = interp
        image = _find_interp(p, path)
    image.release()
    raise err(ELOOP)


def _find_interp(p: Proc, path: bytes) -> ImageParams:
    """The interpreter of a script or program, checked as exec_check does it."""
    try:
        return exec_check(p, _lookup(p, path, None, NAMEI_FOLLOW))
    except OSError as e:
        raise _interp_error(e.errno or EACCES, path) from None


def _interp_error(n: int, path: bytes) -> OSError:
    """The error `n` with the interpreter's name: what was to be run is another file, which may be
    all right."""
    error = err(n)
    error.strerror = f"{error.strerror}: interpreter {fsdecode(path)!r}"
    return error


def _open_interp(p: Proc, path: bytes) -> ImageParams:
    """Find and check a program interpreter.

    :raises OSError: ENOENT when there is none, ELIBBAD when it is no ELF file for this machine.
    """
    interp = _find_interp(p, path)
    try:
        if interp.read(0, 4) != b"\x7fELF":
            raise _interp_error(ELIBBAD, path)
        try:
            interp.elf = elf_parse(interp)
        except OSError as e:
            raise _interp_error(
                ELIBBAD if e.errno == ENOEXEC else e.errno or ELIBBAD, path
            ) from None
    except BaseException:
        interp.release()
        raise
    return interp


# ---- the new program -----------------------------------------------------------------------------


def kern_execve(
    lp: Lwp, image: ImageParams, path: bytes, arguments: Callable[[], ImageArgs]
) -> None:
    """Make `lp`'s process run `image`, which exec_check gave and which is used up. `path` is its
    name, for AT_EXECFN and for scripts; `arguments` stages the arguments. On an error the process
    is as before. May block.

    :raises OSError: what makes it impossible.
    """
    try:
        args = arguments()
    except BaseException:
        image.release()
        raise
    lp.lwp_proc.kernel.vm.gd.gd_cnt.v_exec += 1
    try:
        _become(lp, image, path, args)
    finally:
        args.free()


def _become(lp: Lwp, image: ImageParams, path: bytes, args: ImageArgs) -> None:
    """The part of execve that has the arguments in the kernel: fill a new space, and change over to
    it. Until it is full every error leaves `lp` as it was. May block."""
    p = lp.lwp_proc
    kernel = p.kernel
    nameless = image.nameless
    image = _find_image(p, image, args, path)
    old = p.p_vmspace
    space: Vmspace | None = None
    try:
        space = vmspace_alloc(kernel.vm)
        assert image.elf is not None
        elf_activate(image, space, image.elf, may_map_low(p))
        cred = _new_cred(p, image)
        # Whoever started it must not have a hold on what it does with rights that he lacks.
        secure = cred.cr_uid != cred.cr_ruid or cred.cr_gid != cred.cr_rgid
        # The stack may have to grow for the arguments, and it grows only for its own process.
        p.p_ru.ru_maxrss = maxrss(p)
        p.p_vmspace = space
        sp, strings_at, auxv = _build_stack(p, space, image, args, path, cred, secure)
    except BaseException:
        p.p_vmspace = old
        if space is not None:
            vmspace_free(space)
        if image.interp is not None:
            image.interp.release()
        image.release()
        raise
    middle = strings_at + args.argv_bytes
    p.p_args, p.p_env = (strings_at, middle), (middle, strings_at + args.used)
    p.p_auxv = auxv
    p.p_execpath = kernel.vn_name(image.vp)
    name = fsencode(p.p_execpath) if nameless else path
    p.p_comm = name.rpartition(b"/")[2][:15].decode("utf-8", "surrogateescape")
    p.p_ucred = cred
    p.p_dumpable = 0 if secure else 1
    p.p_membarrier = 0
    if secure:
        p.p_pdeathsig = 0
    _change_over(lp, image, old, sp)


def _change_over(lp: Lwp, image: ImageParams, old: Vmspace, sp: int) -> None:
    """`lp` will run `image` in its process's new space, with its stack at `sp`; what the program
    before leaves behind goes. There is no way back. May block."""
    p = lp.lwp_proc
    if image.interp is not None:
        image.interp.release()
    oldtext, p.p_textvp = p.p_textvp, image.vp
    if lp.lwp_thread.td_lwp is lp:  # not while it is being spawned
        lp.lwp_thread.td_name = f"{p.p_comm}/{lp.lwp_tid}"
    lwp_release_user(lp, old)
    lp.lwp_cr3 = p.p_vmspace.vm_pmap.pm_pml4
    lp.ctx.reset()
    lp.ctx.q[RIP] = image.start
    lp.ctx.q[RSP] = sp
    lp.lwp_pending = True  # the system call table may be another one now
    p.p_flags |= P_EXEC
    if p.p_timers is not None:
        from dfvm.kern.kern_time import timers_exec

        timers_exec(p)
    vmspace_rel(old)
    vfork_done(p)
    if oldtext is not None:
        oldtext.cleartext()
        oldtext.vrele()
    exec_signals(p, lp)
    p.p_fd = p.p_fd.fdunshare()
    p.p_fd.fdcloseexec()


def _new_cred(p: Proc, image: ImageParams) -> Ucred:
    """Who the process will be: the file's set-id bits may change that. Always new credentials, as
    capabilities are computed anew."""
    vp, cred = image.vp, p.p_ucred
    uid, gid = cred.cr_uid, cred.cr_gid
    # With its root directory shared, somebody else could move that under the new program.
    tied = p.p_fs.fs_refcnt > 1
    if not ((tied and uid != 0) or p.p_nonewprivs or vp.v_mount.mnt_flags & ST_NOSUID):
        if vp.v_mode & S_ISUID:
            uid = vp.v_uid
        if vp.v_mode & S_ISGID and vp.v_mode & 0o010:
            gid = vp.v_gid
    new = cred.copy()
    new.cr_uid = new.cr_svuid = new.cr_fsuid = uid
    new.cr_gid = new.cr_svgid = new.cr_fsgid = gid
    cap_exec(cred, new, p.p_nonewprivs, tied)
    return new


def _build_stack(
    p: Proc,
    space: Vmspace,
    image: ImageParams,
    args: ImageArgs,
    execfn: bytes,
    cred: Ucred,
    secure: bool,
) -> tuple[int, int, bytes]:
    """Make the stack and put what a program finds there at its start:

        STACK_TOP - 8   0
                        execfn, NUL
                        environment strings
                        argument strings
                        "x86_64", NUL
                        16 random bytes
                        auxiliary vector
                        environment pointers, 0
                        argument pointers, 0
        RSP % 16 == 0   argc

    Returns the stack pointer, the address of the argument strings, and the auxiliary vector."""
    strings = args.strings()
    platform = b"x86_64\0"
    block = platform + strings + execfn + b"\0" + bytes(8)
    at = STACK_TOP - len(block)
    platform_at = at
    strings_at = at + len(platform)
    execfn_at = strings_at + len(strings)
    random_at = (at - 16) & ~15

    pointers = []
    pos = 0
    for count in (args.argc, args.envc):
        for _ in range(count):
            pointers.append(strings_at + pos)
            pos = strings.index(b"\0", pos) + 1
        pointers.append(0)
    words = [args.argc, *pointers,
             AT_MINSIGSTKSZ, _MINSIGSTKSZ, AT_HWCAP, _HWCAP, AT_PAGESZ, PAGE_SIZE, AT_CLKTCK, 100,
             AT_PHDR, image.phdr, AT_PHENT, PHDR_BYTES, AT_PHNUM, image.phnum,
             AT_BASE, image.base, AT_FLAGS, 0, AT_ENTRY, image.entry,
             AT_UID, cred.cr_ruid, AT_EUID, cred.cr_uid, AT_GID, cred.cr_rgid,
             AT_EGID, cred.cr_gid, AT_SECURE, int(secure), AT_RANDOM, random_at,
             AT_HWCAP2, _HWCAP2, AT_EXECFN, execfn_at, AT_PLATFORM, platform_at,
             AT_NULL, 0]  # fmt: skip
    if round_page(len(block)) > p.p_rlimit(RLIMIT_STACK):
        raise err(E2BIG)
    sp = (random_at - 8 * len(words)) & ~15
    head = b"".join([w.to_bytes(8, "little") for w in words]).ljust(random_at - sp, b"\0")
    data = head + urandom(16).ljust(platform_at - random_at, b"\0") + block

    prot = VM_PROT_READ | VM_PROT_WRITE | (VM_PROT_EXECUTE if image.stack_exec else 0)
    # A small limit holds from the start, but what is there already must fit.
    size = max(min(SGROWSIZ, trunc_page(p.p_rlimit(RLIMIT_STACK))), round_page(len(data)))
    rv, base = vm_map_stack(
        space.vm_map, STACK_TOP - MAXSSIZ, MAXSSIZ, False, prot, VM_PROT_ALL, 0, size
    )
    if rv != KERN_SUCCESS:
        raise err(ENOMEM)
    space.vm_maxsaddr, space.vm_minsaddr = base, STACK_TOP
    space.vm_ssize = size
    try:
        copyout(space, data, sp)
    except OSError as e:
        # The room for arguments goes by the limit of the stack, so only memory can be missing.
        raise err(E2BIG if e.errno == EFAULT else ENOMEM) from None
    return sp, strings_at, head[8 * (1 + len(pointers)) : 8 * len(words)]


def sys_execve(lp: Lwp, upath: int, uargv: int, uenvp: int) -> int:
    """execve(2)"""
    p = lp.lwp_proc
    path = copyinstr(p.p_vmspace, upath, PATH_MAX)
    # The file first: shells try one directory of PATH after the other.
    vp = _lookup(p, path, None, NAMEI_FOLLOW)
    return _execve(lp, vp, path, uargv, uenvp)


def sys_execveat(lp: Lwp, fd: int, upath: int, uargv: int, uenvp: int, flags: int) -> int:
    """execveat(2): relative to a directory, or the file of a descriptor itself."""
    p = lp.lwp_proc
    fd, flags = s32(fd), u32(flags)
    path = copyinstr(p.p_vmspace, upath, PATH_MAX)
    if not path and not flags & AT_EMPTY_PATH:
        raise err(ENOENT)
    if flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW):
        raise err(EINVAL)
    start: Vnode | None = p.p_fs.fs_cdir
    if fd != AT_FDCWD and path[:1] != b"/":
        start = p.p_fd.fget_path(fd).f_vnode
        if start is None:
            raise err(EACCES)
    name = path
    by_fd = fd != AT_FDCWD and path[:1] != b"/"
    if path:
        vp = _lookup(p, path, start, 0 if flags & AT_SYMLINK_NOFOLLOW else NAMEI_FOLLOW)
        if by_fd:
            name = b"/dev/fd/%d/%s" % (fd, path)
    else:
        assert start is not None
        vp, name = start, b"/dev/fd/%d" % fd
    return _execve(lp, vp, name, uargv, uenvp, not path, by_fd and fd in p.p_fd.fd_cloexec)


def _execve(
    lp: Lwp,
    vp: Vnode,
    name: bytes,
    uargv: int,
    uenvp: int,
    nameless: bool = False,
    closes: bool = False,
) -> int:
    """Both of them, with the file found. `name` is the one the program gets to know; the rest as
    in ImageParams."""
    image = exec_check(lp.lwp_proc, vp)
    image.closes, image.nameless = closes, nameless
    kern_execve(lp, image, name, lambda: exec_args_copyin(lp, uargv, uenvp, name))
    raise err(EJUSTRETURN)
