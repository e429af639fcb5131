"""Processes: exec, fork, exit, wait, signals, scheduling, time, and the system calls.

    kernel.py        what is global in a kernel; boot
    machine.py       Machine: the face to whoever embeds it
    trap.py          where the guest enters the kernel
    proc.py          Proc, Lwp, Pgrp, Session
    kern_exec.py     execve; imgact_elf.py, imgact_shell.py: kinds of programs
    kern_fork.py     fork, vfork, clone, unshare
    kern_exit.py     exit, wait
    kern_sig.py      signals; sys_signal.py: the calls about them
    kern_prot.py     who one is: numbers, groups, sessions, users
    kern_sched.py    what programs may say about the CPU
    kern_check.py    verification of the whole machine
    kern_descrip.py, sys_generic.py, sys_pipe.py, tty.py, host_file.py, vnode_file.py  open files
    vfs_syscalls.py, vfs_attr.py, vfs_storage.py, vfs_xattr.py  names, attributes, sizes, copying;
                     kern_path.py finds what they are about
    fsinfo.py        current and root directory, umask
    sys_mman.py, sys_mlock.py, sys_process.py  memory, one's own and others'
    kern_time.py, kern_resource.py, sys_misc.py  time, limits, the rest
    vfs/             vnodes and file systems
    abi/             numbers and structures of what programs were built for

A kernel function runs in the thread of the process it works for, and blocks where it stands. Errors
are OSError from kern_errno.err.
"""
