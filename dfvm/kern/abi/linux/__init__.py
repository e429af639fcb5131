"""The Linux x86-64 ABI: how arguments, structures and signal frames look in user memory."""
