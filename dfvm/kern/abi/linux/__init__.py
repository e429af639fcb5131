"""The Linux x86-64 ABI: how arguments, structures and signal frames look in user memory, and the
calls that mean nothing to DragonFly.

    syscalls.py       the table: number, name, signature, module
    sysent.py         from a number to the function that is called
    args.py           what the registers mean
    linux_struct.py   structures about files
    linux_sigframe.py what a signal handler finds on its stack
    linux_core.py     what a core file says of a process and its threads
    linux_mremap.py, linux_madvise.py  what Linux does to memory and DragonFly does not
"""
