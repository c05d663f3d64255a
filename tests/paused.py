"""A process that is stopped while it owns something, for longer than its lease."""

import signal
import subprocess
import sys


def paused(script: str, *arguments: object, after: str) -> subprocess.Popen[str]:
    """A script in a process of its own, stopped where it waits for a line of input after it has printed one.

    Args:
        script: Python.
        arguments: of the script.
        after: what it prints before.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == f"{after}\n", process.communicate()
    process.send_signal(signal.SIGSTOP)
    return process


def ended(process: subprocess.Popen[str]) -> str:
    """What the process says on stderr when it goes on to its end."""
    process.send_signal(signal.SIGCONT)
    return process.communicate("\n\n\n")[1]
