"""Signals of the host's, wherever dfvm happens to be: before a program runs they end dfvm as they
would have ended the program, afterwards the program gets them, and none is lost or shown as a
traceback. They are raised at chosen places, not after chosen times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SIGNALS = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]


def child(*argv: object, **env: object) -> tuple[int, bytes, bytes]:
    """Run it with core dumps off; status, output and complaints."""
    done = subprocess.run(
        ["sh", "-c", 'ulimit -c 0; exec "$@"', "sh", *map(str, argv)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
        env={**os.environ, **{name: str(value) for name, value in env.items()}},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


# At each audit event (an import, a file opened, a function compiled …) from the second statement
# of dfvm/__main__.py on, a child is forked that sends itself the signals; it must die of each.
EVERYWHERE = """
import os, runpy, signal, sys

def dies(signo):
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), signo)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1]) == signo

def hook(event, args):
    global events, busy
    if busy:
        return
    busy = True
    if events:
        if not all(map(dies, SIGNALS)):
            os.write(1, f"not at event {events}, {event} {args}".encode())
        events += 1
        os.environ["EVENTS"] = str(events)
    elif event == "exec" and args[0].co_filename.endswith("dfvm/__main__.py"):
        events = 1
    busy = False

SIGNALS = [int(name) for name in sys.argv.pop(1).split(",")]
events, busy = 0, False
sys.addaudithook(hook)
end = os._exit
os._exit = lambda status: end(status if events > 500 else 99)
runpy.run_module("dfvm", run_name="__main__")
"""


def test_before_a_program_runs_dfvm_dies_of_them() -> None:
    # One signal for all places, the others where they end dfvm in the same way: by default.
    done = child(sys.executable, "-c", EVERYWHERE, "2", "run", "/no/such")
    assert done == (127, b"", b"dfvm run: /no/such: No such file or directory\n")


# The signal comes when a function of dfvm's is called or returns, for the first time since the
# program has been spawned.
AT = """
import os, signal, sys
from dfvm.kern import machine

place = sys.argv.pop(1), sys.argv.pop(1)
signo = int(sys.argv.pop(1))

def profile(frame, event, arg):
    if (frame.f_code.co_qualname, event) == place:
        sys.setprofile(None)
        os.kill(os.getpid(), signo)

real = machine.Machine.run_last
def run_last(self, process):
    sys.setprofile(profile)
    real(self, process)
machine.Machine.run_last = run_last
from dfvm.__main__ import main
main()
"""

BEFORE = [
    ("Machine.run_last", "call"),
    ("Machine._run", "call"),
    ("HostSignals.install", "call"),
]
AFTER = [
    ("HostSignals.install", "return"),
    ("Scheduler.run", "call"),
    ("HostEvents.listen", "call"),
    ("HostEvents.listen", "return"),
    ("Vcpu.run", "call"),
    ("install_quick_faults.<locals>.on_fault", "call"),  # in a callback of the engine's
    ("trap_pfault", "return"),
    ("HostEvents.wait", "call"),
    ("HostEvents._get_poller", "return"),
    ("HostEvents._collect", "call"),
]
LATE = [
    ("HostSignals.remove", "call"),
    ("HostSignals.remove", "return"),
    ("HostEvents.unlisten", "call"),
    ("HostEvents.unlisten", "return"),
    ("Machine.close", "call"),
    ("Kernel.shutdown", "return"),
]


@pytest.mark.parametrize("place", BEFORE, ids="-".join)
def test_just_before_it_runs(place: tuple[str, str]) -> None:
    argv = "-c", AT, *place, int(signal.SIGTERM), "run", "busybox", "sleep", "1000"
    assert child(sys.executable, *argv) == (-signal.SIGTERM, b"", b"")


@pytest.mark.parametrize("place", AFTER, ids="-".join)
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGHUP], ids=lambda s: s.name)
def test_when_it_runs(place: tuple[str, str], signo: signal.Signals) -> None:
    argv = "-c", AT, *place, int(signo), "run", "busybox", "sleep", "1000"
    assert child(sys.executable, *argv) == (128 + signo, b"", b"")


@pytest.mark.parametrize("place", LATE, ids="-".join)
def test_when_it_has_ended(place: tuple[str, str], tmp_path: Path) -> None:
    """What it wrote gets to the host, and its exit status is what counts."""
    argv = "-c", AT, *place, int(signal.SIGINT), "run", "--rw", tmp_path
    script = f"echo written > {tmp_path}/file; exit 7"
    assert child(sys.executable, *argv, "busybox", "sh", "-c", script) == (7, b"", b"")
    assert (tmp_path / "file").read_text() == "written\n"


# The signal comes when Python has looked for signals for the last time before it waits for long:
# both calls are made from C, without an instruction of Python's between them.
LAST_MOMENT = """
import ctypes, operator
from functools import partial
from dfvm.lwkt import kern_event

class Poller:
    def __init__(self, real):
        self.real, self.register, self.unregister = real, real.register, real.unregister

    def poll(self, timeout):
        if timeout is not None and timeout < 1000:
            return self.real.poll(timeout)
        calls = partial(getattr(ctypes.PyDLL(None), "raise"), 2), partial(self.real.poll, timeout)
        return list(map(operator.call, calls))[1]

real = kern_event.HostEvents._get_poller
def get_poller(self):
    if not isinstance(self._poller, Poller):
        self._poller = Poller(real(self))
    return self._poller
kern_event.HostEvents._get_poller = get_poller
from dfvm.__main__ import main
main()
"""


def test_at_the_last_moment_before_a_long_wait() -> None:
    argv = "-c", LAST_MOMENT, "run", "busybox", "sleep", "1000000"
    assert child(sys.executable, *argv) == (128 + signal.SIGINT, b"", b"")


@pytest.mark.parametrize("signo", SIGNALS, ids=lambda s: s.name)
def test_while_python_starts(signo: signal.Signals, tmp_path: Path) -> None:
    """The script that `make` puts in place of pip's: they wait until Python is up."""
    command = tmp_path / "dfvm"
    subprocess.run([ROOT / "tools" / "launcher.sh", sys.executable, command], check=True)
    if not command.exists():
        pytest.skip("env(1) can't hold signals back")
    path = f"{tmp_path}:{ROOT}"
    assert child(command, "help", PYTHONPATH=path)[::2] == (0, b"")
    (tmp_path / "sitecustomize.py").write_text(f"import os\nos.kill(os.getpid(), {signo:d})\n")
    assert child(command, "help", PYTHONPATH=path) == (-signo, b"", b"")
