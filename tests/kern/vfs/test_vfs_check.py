"""The checker: content after everything shells do to files, and not blind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dfvm.kern.machine import PIPE, Machine
from dfvm.kern.vfs.namei import namei
from dfvm.kern.vfs.overlay import OvlVnode
from dfvm.kern.vfs.vfs_check import vfs_check
from dfvm.kern.vfs.vnode_param import KCRED

BUSYBOX = "/usr/bin/busybox"

pytestmark = pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="no static busybox")

SCRIPT = """
cd /tmp && mkdir -p w/a/b && cd w
for i in 1 2 3 4 5; do echo $i > f$i; ln f$i a/l$i; ln -s ../f$i a/s$i; done
mv a c; cp -r c d; rm -r c; mkfifo p; (echo fifo > p &); cat p
tar cf t.tar d; mkdir x; tar xf t.tar -C x; find . -type f | sort | xargs cat | wc -c
exec 3< f1 4> f2; rm f1 f2; cat <&3; echo kept >&4
cat /etc/passwd > copy; echo more >> copy; chmod 600 copy; touch -d 2001-01-01 copy
cat << EOF | sort | uniq -c
x
y
x
EOF
(cd d && pwd) && ls -l /proc/$$/fd > /dev/null
dd if=/dev/zero of=big bs=64k count=8 2> /dev/null; rm big
"""


def test_clean_after_a_shell(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("through\n")
    with Machine(mem="64M", check=True, rw=[str(tmp_path)]) as m:
        script = SCRIPT + f"cd {tmp_path}; echo x >> f; mv f g; rm -f h; mkdir k; cp g k; rm -r k\n"
        p = m.spawn([BUSYBOX, "sh", "-c", script], stdout=PIPE, stderr=PIPE)
        assert vfs_check(m.kernel) == []
        m.run()
        assert p.stderr == b"" and p.exit_status == 0
        assert vfs_check(m.kernel) == []
    assert (tmp_path / "g").read_text() == "through\nx\n"


def test_complaints() -> None:
    with Machine(mem="64M") as m:
        root = m.kernel.vfs.rootvnode
        vp = namei(root, root, b"/etc/passwd", KCRED)
        assert vfs_check(m.kernel) == []
        vp.vref()
        assert any("only 0 of its references" in bad for bad in vfs_check(m.kernel))
        vp.vrele()
        vp.v_writecount += 1
        assert any("writers" in bad for bad in vfs_check(m.kernel))
        vp.v_writecount -= 1
        new = root.create(b"dfvm-test", 0o644, KCRED)
        assert isinstance(new, OvlVnode)
        assert vfs_check(m.kernel) == []
        new.o_nlink += 1
        assert any("2 links, 1 names" in bad for bad in vfs_check(m.kernel))
        new.o_nlink -= 1
        root.v_usecount -= 1
        assert any("references are held" in bad for bad in vfs_check(m.kernel))
        root.v_usecount += 1
