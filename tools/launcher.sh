#!/bin/sh
# launcher.sh PYTHON FILE: write the `dfvm` command that runs with PYTHON to FILE.
#
# The script that pip writes does the same, but a ^C while Python starts (10 to 30 ms, of which
# nothing of ours knows) ends it with a traceback of Python's own modules. Here the signals that end
# a program wait until Python is up; the first thing that it does is to let them in. Where env(1)
# can't do that (coreutils before 8.31, other kinds), or the line would be too long for the kernel,
# or cut at a space, what is there stays.

held=HUP,INT,QUIT,TERM
line="#!/usr/bin/env -S --block-signal=$held $1"
[ ${#line} -le 127 ] || exit 0
case $1 in *[[:space:]\"\'\\\$\#]*) exit 0 ;; esac
/usr/bin/env -S "--block-signal=$held true" 2>/dev/null || exit 0

cat >"$2.new" <<END
$line
from _signal import SIG_DFL, SIG_UNBLOCK, SIGHUP, SIGINT, SIGQUIT, SIGTERM
from _signal import default_int_handler, getsignal, pthread_sigmask, signal

if getsignal(SIGINT) is default_int_handler:
    signal(SIGINT, SIG_DFL)
pthread_sigmask(SIG_UNBLOCK, (SIGHUP, SIGINT, SIGQUIT, SIGTERM))

from dfvm.__main__ import main

main()
END
chmod +x "$2.new" && mv "$2.new" "$2"
