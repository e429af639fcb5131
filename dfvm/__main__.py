"""The `dfvm` command, and `python -m dfvm`: what signals do comes before everything else.

Python turns SIGINT into a KeyboardInterrupt wherever it happens to be, half-way through an import
for example, and shows where that was. Until a program runs, which then gets it, ^C ends dfvm as it
would have ended the program. So the first statements below are about signals, and nothing that
takes time to import stands before them. Importing this module changes what this process does at
SIGINT: nobody does but who runs the command.

tools/launcher.sh writes a script that also covers the time in which Python itself starts.
"""

import _signal  # type: ignore[import-not-found]  # the whole of signal.py takes a ms or two

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Run the command that the process was started with, and end with its exit status."""
    from dfvm.tools.main import main as run

    run()


if __name__ == "__main__":
    main()
