"""DragonFly BSD's virtual memory: one module for each kernel source file; the large files are split
by topic (vm_map_insert.py is a part of vm_map.c). docs/vm.md is a guided reading.

    vm.py, vm_param.py    constants: rights, results, sizes, the shape of the address space
    vm_init.py            VmSystem: what sys/vm keeps in global variables; boot
    vm_meter.py           what is counted
    probe.py              where others may watch
    vm_proc.py, vm_vnode.py, vm_shm.py
                          what the VM must know of processes, files and System V segments
    vm_page_*.py          frames: queues, allocation, busy, valid and dirty, paging, the hash
    vm_object_*.py        containers of pages
    pager/, vm_pager.py   where pages come from and go to
    vm_map_*.py           address maps: entries, backing chains, holes, rights, wiring, stacks
    vmspace.py            a process's map and page tables; fork and the two-stage end
    vm_mmap.py, vm_unix.py  what mmap and brk come down to
    vm_fault_*.py         page faults; the quick part runs inside the engine's callback
    pmap_*.py             the page tables themselves
    copyio.py             the kernel's way to user memory
    vm_kern.py            kernel_map
    vm_page2.py           how short memory is; vm_pageout.py: what is reclaimed then
    *_check.py            is all of it as it should be? For Machine.check()

What protects what, outermost first; take them in this order:

    vnode lock (vfs, lockmgr)             read(2) and write(2) of one file, one at a time. The copy
                                          to or from the user may fault, so it comes before the map
                                          lock; a fault never takes it, its pager reads without it
      map token (vm_map.token)            makes fork and insert of one map take turns
      map lock (vm_map.lock, lockmgr)     entries of a map, their chains, the holes between them.
                                          Exclusive to change, shared to look up and to fault
        object token (vm_object.token)    the pages of an object; given up while its holder sleeps
          page busy (vm_page.busy_count)  one page: hard busy to change whose it is, what is valid,
                                          or wiring 0 ↔ 1; soft busy to keep it as it is
            backing_lk (lockmgr)          who maps an object: the list that finds a page's PTEs
              page tables                 no lock: changed without blocking, by one CPU

One kernel thread runs at a time and gives up the CPU only where it sleeps. So what does not block
between two looks needs no lock at all, and most of the quick paths rest on that: they test that the
lock is free instead of taking it. What may block says so in its docstring.
"""
