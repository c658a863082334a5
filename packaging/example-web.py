"""Tells each client which process has served it. Descriptor 3 is its listening socket.

It says when it is ready and that it lives (sd_notify(3)). On SIGTERM it ends; a client that it
has accepted is always answered.
"""

import os
import select
import signal
import socket
import time


def notify(text):
    """Tells the service manager, if that listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(text.encode(), address.replace("@", "\0", 1))


# A signal is a byte to read: it comes between two clients, and not in the middle of one.
told_to_end, signalled = socket.socketpair()
signalled.setblocking(False)
signal.set_wakeup_fd(signalled.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)

listener = socket.socket(fileno=3)
# Another process may have the same socket, and accept the client that this one has seen.
listener.setblocking(False)

# systemd's watchdog, if there is one, is told of this loop after a quarter of its time at the
# earliest, and after half at the latest.
pause = int(os.environ.get("WATCHDOG_USEC", "0")) / 4_000_000
notify(f"READY=1\nSTATUS=served by process {os.getpid()}\n")
said_at = time.monotonic()
while True:
    readable, _, _ = select.select([listener, told_to_end], [], [], pause or None)
    if told_to_end in readable:
        break
    if pause and time.monotonic() >= said_at + pause:
        notify("WATCHDOG=1\n")
        said_at = time.monotonic()
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        continue
    with connection:
        connection.sendall(b"%d\n" % os.getpid())
