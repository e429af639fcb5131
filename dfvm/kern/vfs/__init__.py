"""File systems: vnodes, names, mounts, and what is mounted.

vnode.py     Vnode, its reference rules and operations: the API of this package
namei.py     path names to vnodes
vfs_bio.py   read and write through the page cache
vfs_vnops.py vn_open: open(2)'s rules
mount.py     Vfs (one for each machine), Mount
store.py     what lies under a regular file's pages
hostfd.py    the host's file descriptors, opened late and bounded
overlay.py   files in memory over an optional host directory (the root, /tmp)
hostfs.py    host directories written through (--rw)
tmpfs.py     files in memory with a size limit
devfs.py     /dev
procfs.py    /proc
vfs_check.py the checker's part
"""
