"""An HTTP server that takes its socket as programs in Go do, with coreos' activation package.

The rules are that package's: LISTEN_PID must be this process, descriptors count from 3 and
are closed on exec, and the variables are unset, so that no child takes them for its own.
"""

import os
import select
import signal
import socket
import threading

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
FIRST = 3


def listeners():
    pid, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    sockets = {}
    for number in range(FIRST, FIRST + int(count)):
        os.set_inheritable(number, False)
        name = names[number - FIRST] if number - FIRST < len(names) else f"LISTEN_FD_{number}"
        sockets[name] = socket.socket(fileno=number)
    return sockets


def serve(client):
    with client:
        request = b""
        while b"\r\n\r\n" not in request:
            more = client.recv(4096)
            if not more:
                return
            request += more
        client.sendall(ANSWER)


def main():
    listener = listeners()["web"]
    # Another process may be faster to accept what select has told of.
    listener.setblocking(False)
    stop, stopped = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stopped.send(b"x"))
    while stop not in select.select([stop, listener], [], [])[0]:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            continue
        client.setblocking(True)
        # Python waits for these at its end.
        threading.Thread(target=serve, args=(client,)).start()


if __name__ == "__main__":
    main()
