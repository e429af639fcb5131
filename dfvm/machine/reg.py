"""The processor's own numbers: of its registers, which are also where they lie in the engine's live
state (64-bit words, RIP behind the general ones), and of its exceptions.

Source: the processor's manuals; names of exceptions as in Linux arch/x86/include/asm/trapnr.h.
"""

from __future__ import annotations

from typing import Final

RAX: Final = 0
RCX: Final = 1
RDX: Final = 2
RBX: Final = 3
RSP: Final = 4
RBP: Final = 5
RSI: Final = 6
RDI: Final = 7
R8: Final = 8
R9: Final = 9
R10: Final = 10
R11: Final = 11
R12: Final = 12
R13: Final = 13
R14: Final = 14
R15: Final = 15
RIP: Final = 16

# Exception vectors.
X86_TRAP_DE: Final = 0  # division
X86_TRAP_DB: Final = 1  # a single step is over
X86_TRAP_BP: Final = 3  # int3
X86_TRAP_OF: Final = 4
X86_TRAP_BR: Final = 5
X86_TRAP_UD: Final = 6  # an invalid opcode
X86_TRAP_NM: Final = 7
X86_TRAP_DF: Final = 8  # double fault
X86_TRAP_TS: Final = 10
X86_TRAP_NP: Final = 11
X86_TRAP_SS: Final = 12
X86_TRAP_GP: Final = 13  # general protection
X86_TRAP_PF: Final = 14
X86_TRAP_MF: Final = 16  # x87
X86_TRAP_AC: Final = 17  # alignment
X86_TRAP_XF: Final = 19  # SSE
