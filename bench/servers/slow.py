"""An HTTP server that takes long to start and has one long request.

    slow.py [--start SECONDS] [--long SECONDS] [--ready-fd N]

It serves on descriptor 3. /long takes --long seconds, everything else is answered at once.
When it is ready it writes a newline to --ready-fd. On SIGTERM it stops accepting, answers
what it has accepted, and exits. One thread, so that thousands of clients cost no thread each.
"""

import argparse
import heapq
import os
import selectors
import signal
import socket
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"


class Server:
    def __init__(self, listener, long):
        self.listener, self.long = listener, long
        self.selector = selectors.DefaultSelector()
        self.requests = {}  # what each client has sent so far
        self.pending = []  # heap of (when to answer, descriptor, client)
        self.stopping = False

    def run(self, stop):
        self.selector.register(stop, selectors.EVENT_READ, self.on_stop)
        self.selector.register(self.listener, selectors.EVENT_READ, self.on_connection)
        while not self.stopping or self.requests or self.pending:
            timeout = max(0, self.pending[0][0] - time.monotonic()) if self.pending else None
            for key, _ in self.selector.select(timeout):
                key.data(key.fileobj)
            while self.pending and self.pending[0][0] <= time.monotonic():
                self.answer(heapq.heappop(self.pending)[2])

    def on_stop(self, stop):
        self.stopping = True
        self.selector.unregister(stop)
        self.selector.unregister(self.listener)

    def on_connection(self, listener):
        try:
            client, _ = listener.accept()
        except OSError:
            return  # another generation was faster, or the client has gone
        client.setblocking(False)
        self.requests[client] = b""
        self.selector.register(client, selectors.EVENT_READ, self.on_request)

    def on_request(self, client):
        try:
            received = client.recv(4096)
        except OSError:
            received = b""
        self.requests[client] += received
        if received and b"\r\n\r\n" not in self.requests[client]:
            return
        self.selector.unregister(client)
        request = self.requests.pop(client)
        if not received:
            client.close()
        elif request.startswith(b"GET /long "):
            heapq.heappush(self.pending, (time.monotonic() + self.long, client.fileno(), client))
        else:
            self.answer(client)

    def answer(self, client):
        with client:
            try:
                client.sendall(ANSWER)
            except OSError:
                pass  # the client has gone


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", type=float, default=3)
    parser.add_argument("--long", type=float, default=10)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    time.sleep(options.start)
    stop, stopped = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stopped.send(b"x"))
    listener = socket.socket(fileno=3)
    # Another generation may accept what the selector has reported.
    listener.setblocking(False)
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"\n")
        os.close(options.ready_fd)
    Server(listener, options.long).run(stop)


if __name__ == "__main__":
    main()
