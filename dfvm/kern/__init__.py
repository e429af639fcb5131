"""Processes: exec, fork, exit, wait, signals, scheduling, time, and the system calls.

    kernel.py        what is global in a kernel; boot
    machine.py       Machine: the face to whoever embeds it; machine_args.py: what it is given
    trap.py          where the guest enters the kernel
    proc.py          Proc, Lwp, Pgrp, Session
    kern_fork.py     fork, vfork, clone, unshare
    kern_exec.py     execve; imgact_elf.py, imgact_shell.py: kinds of programs
    kern_exit.py     exit, wait
    kern_sig.py      signals; sys_signal.py: the calls about them; kern_core.py: core files
    kern_prot.py     who one is: numbers, groups, sessions, users; kern_caps.py: root's rights
    kern_sched.py    what programs may say about the CPU
    kern_time.py     clocks, sleeping, timers
    kern_ntptime.py  adjtimex: how well the clock is kept
    kern_resource.py limits, usage, nice values
    sys_mman.py      mmap and its kin; sys_mlock.py: memory that stays; vma.py: Linux's VMAs
    kern_commit.py   how much may be mapped: limits, and what memory is promised for
    sys_process.py   what one process may do to another's memory
    sysv_ipc.py      System V IPC: what its kinds share; sysv_shm.py, sysv_sem.py, sysv_msg.py
    sys_futex.py     sleeping on words of memory; kern_umtx.py: those that are locks, with owners
    sys_prctl.py     what a process says about itself
    sys_misc.py      uname, random bytes, and other small things
    kern_check.py    verification of the whole machine
    kern_errno.py    error numbers, and how they are raised

Open files:

    kern_descrip.py  descriptors, and File, which all kinds of open files derive from
    kern_fcntl.py    fcntl
    sys_generic.py   transfers, ioctl, poll, select
    vnode_file.py    files of the file systems; host_file.py: the host's, as standard streams
    sys_pipe.py      pipes and fifos; sys_splice.py: moving data through them
    tty.py           job control, the host's terminal; tty_pty.py: pseudo terminals; tty_ldisc.py:
                     what is between the keys and the program
    sys_eventfd.py, sys_timerfd.py, sys_signalfd.py, sys_pidfd.py, sys_inotify.py
                     a counter, a timer, signals, a process, events of files: each as a file
    sys_mqueue.py    POSIX message queues
    sys_epoll.py     epoll; kern_event.py: who hears of a file that becomes ready
    sys_sigio.py     a signal when it does; sys_dnotify.py: when something happens in a directory
    kern_lockf.py    file locks; kern_lease.py: leases

Sockets:

    uipc_syscalls.py the system calls; uipc_domain.py: which kinds of sockets there are
    uipc_socket.py   a socket of any kind: its options, waiting; uipc_sockbuf.py: its buffers
    sys_socket.py    a socket as an open file
    uipc_usrreq.py   local sockets (AF_UNIX); uipc_rights.py: files that are sent through them
    uipc_check.py    verification of these, and /proc/net/unix

Names of files:

    vfs_syscalls.py  opening, making, renaming, removing; kern_path.py: the paths of system calls
    vfs_attr.py      attributes; vfs_xattr.py: extended ones
    vfs_storage.py   sizes, writing out, copying from file to file
    sys_mount.py     mount, umount; dev_loop.py: files as block devices
    fsinfo.py        a process's current and root directory and umask
    vfs/             vnodes and file systems

    abi/             numbers and structures of what programs were built for

A kernel function runs in the thread of the process it works for, and blocks where it stands. Errors
are OSError from kern_errno.err.
"""
