"""Scripts by busybox's shell and by bash, on the host and under dfvm: same output, same status.

Both sides start in a fresh directory with the same files. The environment holds nothing but PATH,
so that only what the script does can differ.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dfvm import PIPE, Machine

BUSYBOX = "/usr/bin/busybox"
BASH = "/bin/bash-static"
ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

# Commands in these are busybox's own (its shell prefers its applets), so that nothing dynamic runs.
BUSYBOX_SCRIPTS = {
    "pipeline": "printf 'c\\na\\nb\\n' | sort | tr a-z A-Z | sed 's/B/[&]/' | cat -n",
    "redirection": "echo one >f; echo two >>f; cat <f; cat nofile 2>/dev/null; echo $?; wc -c <f",
    "here-document": "x=5; cat <<EOF\nx is $x, sum $((x + 2))\nEOF\ncat <<'EOF'\nx is $x\nEOF",
    "subshell": "x=1; (x=2; cd /; pwd; exit 3); echo $? $x; { echo group; } | cat",
    "substitution": "echo \"<$(echo a; echo b)>\" `echo c`; n=$(seq 1 50 | wc -l); echo $n",
    "functions": "f() { local y=$1; echo f $y $#; return 4; }; f a b; echo $?; f; echo $?",
    "loops": "for i in 1 2 3; do [ $i = 2 ] && continue; echo $i; done; i=0; "
             "while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i; case abc in a*) echo match;; esac",
    "trap": "trap 'echo bye' EXIT; trap 'echo usr1' USR1; kill -USR1 $$; echo after; exit 6",
    "trap-term": "(trap 'echo got term; exit 9' TERM; kill -TERM $(sh -c 'echo $PPID'); sleep 1); "
                 "echo $?",
    "background": "sleep 0.05 & p=$!; (exit 5) & q=$!; wait $q; echo $?; wait $p; echo $?; wait",
    # Whether ash says "Terminated" depends on whether it is `wait` that finds the process dead.
    "kill": "sleep 10 & kill $!; { wait $!; } 2>/dev/null; echo $?; kill -9 999999; echo $?",
    "exit-codes": "true; echo $?; false; echo $?; sh -c 'exit 77'; echo $?; nosuchcommand; echo $?; "
                  "/etc/passwd; echo $?; sh -c 'kill -SEGV $$'; echo $?",
    "find": "mkdir -p a/b/c; touch a/x a/b/y.txt a/b/c/z.txt; find a -name '*.txt' | sort; "
            "find a -type d | sort; rm -r a; ls",
    "awk": "seq 1 100 | awk '{s += $1; if ($1 % 10 == 0) print $1, s} END {printf \"%d %.3f\\n\", s, s/7}'",
    "sed": "seq 1 10 | sed -n '3,5p;7{s/7/seven/;p}'; echo hello world | sed -E 's/(l+)o/<\\1>/g'",
    "tar-gzip": "mkdir d; seq 1 2000 >d/a; cp d/a d/b; ln -s a d/l; tar cf - d | gzip >t.gz; rm -r d; "
                "gunzip -c t.gz | tar xf -; md5sum d/a d/b; readlink d/l; ls d",
    "dd": "dd if=/dev/zero bs=1k count=300 2>/dev/null | md5sum; "
          "dd if=/dev/zero of=f bs=512 count=3 seek=2 2>/dev/null; wc -c <f; "
          "dd if=f bs=100 skip=3 count=2 2>/dev/null | wc -c",
    "xargs": "seq 1 20 | xargs -n 7 echo; printf 'a b\\0c' | xargs -0 -n 1 echo",
    "checksums": "seq 1 5000 >f; md5sum f; sha1sum f; sha256sum f; sha512sum f; cksum f; crc32 f",
    "files": "touch f; chmod 640 f; stat -c '%a %s %F %h' f; ln f g; stat -c %h f; mv f h; ls; "
             "mkdir d; mv h d; rmdir d; echo $?; ls d; cp d/h k; test -f k && echo yes; rm -r d",
    "links": "echo data >f; ln -s f l; cat l; ln -s nowhere dangling; cat dangling; echo $?; "
             "readlink -f l | sed 's,.*/,,'; ln -s loop loop; cat loop; echo $?",
    "fifo": "mkfifo p; (echo through >p) & cat p; wait; rm p",
    "dup": "exec 3>f; echo three >&3; exec 3>&-; cat f; exec 4<f; read x <&4; echo $x; "
           "(echo err >&2; echo out) 2>&1 >/dev/null | cat",
    "pipe-status": "yes | head -n 3; seq 1 100000 | head -n 2; echo done",
    "big-pipe": "dd if=/dev/zero bs=64k count=40 2>/dev/null | tr '\\0' x | sha256sum",
    "umask": "umask 027; touch f; mkdir d; stat -c %a f d; umask",
    "cwd": "mkdir -p x/y; cd x/y; pwd | sed 's,.*/x,x,'; cd ..; cd -  >/dev/null; ls ..; cd /; pwd",
    "date": "date -d @86400 '+%F %T'; touch -d @1000000000 f; stat -c %Y f; ls -l f | cut -c 1-10",
    "proc": "cat /proc/self/comm; readlink /proc/self/exe; tr '\\0' ' ' </proc/self/cmdline; echo; "
            "ls /proc/self/fd | wc -l; grep -c . /proc/self/maps >/dev/null && echo maps",
    "environment": "A=1 sh -c 'echo $A'; export B='two words'; env | grep B=; unset B; env | grep -c B=",
    "nested": "sh -c 'sh -c \"sh -c \\\"echo deep; exit 3\\\"\"; echo $?'; echo $?",
    "arith": "echo $((1 << 40)) $((7 / 2)) $((-7 % 3)) $((0x1f)) $((5 > 3 && 2))",
    "sort": "seq 1 3000 | sort -r | head -n 3; printf '10 b\\n9 a\\n' | sort -n; "
            "printf 'x\\nx\\ny\\n' | uniq -c",
    "grep-cut": "seq 1 300 | grep -E '^(1|2)0+$'; echo a:b:c | cut -d: -f2-; echo abc | rev; "
                "printf 'a\\tb\\n' | expand | od -c | head -n 2",
    "vi-less": "printf 'one\\ntwo\\n' >f; printf '3i x\\n' | ed f 2>/dev/null; head -c 3 f; tail -n 1 f",
    "diff": "seq 1 5 >a; seq 2 6 >b; diff a b; echo $?; cmp a b; echo $?; diff a a; echo $?",
    "bc": "echo '2^100; scale=20; 1/7' | bc; echo '5 3 + p' | dc",
    "time-limit": "timeout 1 sleep 5; echo $?; timeout 5 true; echo $?",
}  # fmt: skip

BASH_SCRIPTS = {
    "arrays": "a=(x 'y z' w); echo ${#a[@]} ${a[1]}; a+=(q); for i in \"${a[@]}\"; do echo \"<$i>\"; done; "
              "declare -A m=([k]=v [l]=w); echo ${m[k]}${m[l]}",
    "substitution": "diff <(printf '1\\n2\\n') <(printf '1\\n3\\n') | cat; "
                    "echo $(( $(echo 3) * 4 )); x=abcdef; echo ${x:2:3} ${x/cd/-} ${x^^} ${x%e*}",
    "regex": "[[ foo123 =~ ([a-z]+)([0-9]+) ]] && echo ${BASH_REMATCH[1]} ${BASH_REMATCH[2]}",
    "loops": "for ((i = 0; i < 5; i++)); do ((i == 3)) && break; echo $i; done; "
             "printf '%s\\n' {a..c}{1..2}; while read -r l; do echo \"[$l]\"; done <<< $'p\\nq'",
    "pipes": "echo a b c | while read x y; do echo \"$y $x\"; done; set -o pipefail; "
             "false | true; echo $?; echo ${PIPESTATUS[@]}",
    "traps": "trap 'echo exit $?' EXIT; trap 'echo err' ERR; false; trap 'echo usr' USR1; "
             "kill -USR1 $$; (exit 3); exit 4",
    "jobs": "sleep 0.1 & sleep 0.2 & jobs | wc -l 2>/dev/null; wait; echo $?; "
            "{ sleep 5; } & kill %1 2>/dev/null || kill $!; wait $!; echo $?",
    "coproc": "coproc { read l; echo \"got $l\"; }; echo hi >&${COPROC[1]}; read r <&${COPROC[0]}; "
              "echo $r; wait",
    "read": "printf 'a:b\\n' | { IFS=: read x y; echo $y $x; }; read -t 0.1 z < /dev/null; echo $?; "
            "mapfile -t m < <(printf '1\\n2\\n3\\n'); echo ${#m[@]}",
    "subshells": "x=1; (x=2; (x=3; echo $x); echo $x); echo $x; echo $BASH_SUBSHELL; "
                 "(echo $BASH_SUBSHELL; exit 9); echo $?",
    "functions": "f() { local -i n=$1; ((n <= 1)) && { echo 1; return; }; echo $((n * $(f $((n-1))))); }; "
                 "f 10; g() { return 42; }; g; echo $?",
    "redirection": "exec 5<>file; echo hello >&5; exec 5>&-; cat() { while read -r l; do echo \"$l\"; "
                   "done; }; cat <file; { echo o; echo e >&2; } >o 2>e; cat <o; cat <e; "
                   "echo x &>both; cat <both; set -C; echo y >both; echo $?",
    "limits": "ulimit -n 64; ulimit -n; ulimit -c 0; (ulimit -s 1024; ulimit -s); ulimit -Sv",
    "kill": "bash-static -c 'kill -TERM $$'; echo $?; bash-static -c 'ulimit -c 0; kill -SEGV $$'; echo $?",
}  # fmt: skip


def files(directory: Path) -> Path:
    directory.mkdir()
    (directory / "given").write_text("given\n")
    return directory


def numberless(text: bytes) -> bytes:
    """Messages without the process ids in them, and wherever they were written."""
    return re.sub(rb" *[0-9]+", b" N", text.replace(b"/ours", b"/host"))


def same(argv: list[str], tmp_path: Path) -> None:
    host = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=files(tmp_path / "host"),
        env=ENV,
        timeout=600,
        check=False,
        process_group=0,  # not orphaned, whoever started us: SIGTSTP and its kin stop it
    )
    with Machine(mem="64M", check=True, env=ENV) as m:
        p = m.spawn(argv, stdin=b"", stdout=PIPE, stderr=PIPE, cwd=str(files(tmp_path / "ours")))
        m.run(timeout=600)
        m.check()
    status = host.returncode if host.returncode >= 0 else 128 - host.returncode
    assert p.stdout == host.stdout, p.stderr.decode(errors="replace")
    assert p.exit_status == status
    assert numberless(p.stderr) == numberless(host.stderr)


@pytest.mark.skipif(not Path(BUSYBOX).exists(), reason="busybox-static is not installed")
@pytest.mark.parametrize("name", BUSYBOX_SCRIPTS)
def test_busybox(name: str, tmp_path: Path) -> None:
    same([BUSYBOX, "sh", "-c", BUSYBOX_SCRIPTS[name]], tmp_path)


@pytest.mark.skipif(not Path(BASH).exists(), reason="bash-static is not installed")
@pytest.mark.parametrize("name", BASH_SCRIPTS)
def test_bash(name: str, tmp_path: Path) -> None:
    same([BASH, "-c", BASH_SCRIPTS[name]], tmp_path)
