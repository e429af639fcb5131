"""File systems: vnodes, names, mounts, and what is mounted.

vnode.py     Vnode, its reference rules and operations: the API of this package
vnode_ops.py what a vnode consists of, and what its file system provides
vnode_param.py types, modes, flags, Cred, Vattr
vfs_helper.py who may do what to a file
vfs_rename.py renaming
namei.py     path names to vnodes
resolve.py   the same within openat2's restrictions
vfs_bio.py   read and write through the page cache
vfs_vnops.py vn_open: open(2)'s rules
vfs_notify.py events, for those who watch files (inotify)
seals.py     what can no longer be done to a file of memfd_create
mount.py     Vfs (one for each machine), Mount
vfs_mount.py mounting, unmounting, moving
nullfs.py    a file system at one more place (bind mounts)
vfs_init.py  what is mounted on a new machine
store.py     what lies under a regular file's pages
hostfd.py    the host's file descriptors, opened late and bounded
overlay.py   files in memory over an optional host directory (the root, /tmp)
hostfs.py    host directories written through (--rw)
tmpfs.py     files in memory with limits on their size and number
mqueuefs.py  /dev/mqueue: POSIX message queues
devfs.py     /dev
procfs.py    /proc; procfs_system.py, procfs_proc.py, procfs_maps.py, procfs_query.py,
             procfs_sysctl.py: its files
sysfs.py     /sys
vfs_check.py the checker's part
"""
