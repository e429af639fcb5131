"""Kernel threads and everything they wait with.

A kernel thread is a greenlet, so code blocks where it stands; one thread runs at a time, and it
runs until it gives the CPU away (tsleep, a contended lock, yield). Nothing here knows what a
process or a CPU engine is.

    panic.py         a broken invariant
    kern_clock.py    callouts and ticks
    kern_event.py    waiting for the host: file descriptors, and calls from other host threads
    kern_synch.py    tsleep, wakeup, interrupt
    lwkt_thread.py   Thread, Scheduler: who runs next
    lwkt_token.py    tokens: given up while asleep
    kern_lock.py     lockmgr: held while asleep
    kern_spinlock.py spinlocks: no sleep at all while held
    subr_witness.py  lock order, in debug mode

Which lock for what: a token protects state that must not change while its holder runs but may
change while it sleeps; a lockmgr lock protects state across sleep; a spinlock says "nothing in
here may block" and has the code prove it.

Order: lockmgr locks before tokens before spinlocks. Tokens have no order among themselves. Among
lockmgr locks and among spinlocks the order is the one in which they were first nested; with
`sched.debug` the opposite order is a panic, at the first time it is seen and not only when two
threads meet.

Source: DragonFly sys/kern/{lwkt_thread,lwkt_token,kern_lock,kern_spinlock,kern_synch}.c.
"""
