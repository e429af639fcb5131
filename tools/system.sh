#!/bin/sh
# Install the system packages that the guests and tests need, as root on Debian and its kin.
# Elsewhere: name what is missing and go on, unless there is no C compiler.
need=""
command -v cc >/dev/null 2>&1 || need="$need gcc libc6-dev"
[ -e /usr/lib/x86_64-linux-gnu/libc.a ] || need="$need libc6-dev"
[ -x /usr/bin/busybox ] || need="$need busybox-static"
[ -x /bin/bash-static ] || need="$need bash-static"
command -v musl-gcc >/dev/null 2>&1 || need="$need musl-tools"
[ -z "$need" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$need"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    if apt-get update -qq >/dev/null && apt-get install -y -qq $need >/dev/null; then
        exit 0
    fi
    echo "apt-get could not install$need" >&2
else
    echo "not installed (needs root and apt-get):$need" >&2
fi
command -v cc >/dev/null 2>&1 || { echo "a C compiler is needed to build the guests" >&2; exit 1; }
