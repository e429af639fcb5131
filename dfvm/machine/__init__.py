"""A CPU and its RAM. Knows Unicorn; knows no process, and nothing else of dfvm.

    ram.py      guest physical memory, shared by the engine and Python
    engine.py   Unicorn as a whole processor, and its registers found in memory
    cpu.py      the VCPU: runs a context until the kernel is needed
    native.py   loads native/, in C: instructions that the engine gets wrong, done right
    mmu.py      what must be flushed before it runs again
    reg.py      numbers of registers and exceptions
    pte.py      bits of page-table entries, memory types
    walk.py     a walk of the page tables for people

docs/engine.md tells what the engine really does.
"""
