"""Ctrl-C, which Ray answers in ways of its own.

Floor 8.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """A block that Ctrl-C ends with KeyboardInterrupt, whatever is made of it inside.

    Ray Tune stops in good order and returns as if all were done; Ray Train exits with code 0. Both leave a handler
    behind that would swallow the next Ctrl-C as well.

    Raises:
        KeyboardInterrupt: SIGINT arrived; at the latest at the end of the block.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's to handle
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        outer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(outer)
            signal.signal(signal.SIGINT, handler)
            writer.send(b"\0")  # so that there is something to read
            if signal.SIGINT in reader.recv(1 << 16):
                raise KeyboardInterrupt
