"""Numbers the lines of each client, and keeps its clients when it is restarted.

    fdholder exec --fd listener --notify NAME HOLDER -- python3 keeper.py

As examples/python/counter.py, for thousands of clients: on SIGTERM it stores connections
through NOTIFY_SOCKET (FDSTORE=1), 250 in a message, and what it knows of the clients in one
memfd. The next generation gets all of it and goes on.
"""

import array
import json
import os
import selectors
import signal
import socket

FDS_PER_MESSAGE = 250


class Notify:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = os.environ["NOTIFY_SOCKET"]
        self.socket.connect("\0" + path[1:] if path.startswith("@") else path)

    def send(self, text, fds=()):
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([text.encode()], rights)

    def barrier(self):
        """Returns when the holder has done what it was sent."""
        read, write = os.pipe()
        self.send("BARRIER=1", [write])
        os.close(write)
        os.read(read, 1)
        os.close(read)


class Client:
    def __init__(self, connection, count=0, pending=""):
        self.connection, self.count, self.pending = connection, count, pending

    def read(self):
        """Answers whole lines; false when the client has gone."""
        try:
            received = self.connection.recv(4096)
            *lines, self.pending = (self.pending + received.decode("latin-1")).split("\n")
            for _ in lines:
                self.count += 1
                self.connection.sendall(b"%d\n" % self.count)
        except OSError:
            return False
        return received != b""


def take_back(fds, notify):
    """What the generation before has stored, which the holder then releases."""
    state = {}
    for fd in fds.get("state", []):
        state = json.loads(os.pread(fd, 1 << 24, 0))
        os.close(fd)
    clients = []
    for fd in fds.get("c", []):
        connection = socket.socket(fileno=fd)
        clients.append(Client(connection, *state[str(connection.getpeername()[1])]))
    notify.send("FDSTOREREMOVE=1\nFDNAME=c")
    notify.send("FDSTOREREMOVE=1\nFDNAME=state")
    notify.barrier()
    return clients


def store(clients, notify):
    """A client is known by its port."""
    known = {it.connection.getpeername()[1]: [it.count, it.pending] for it in clients}
    state = os.memfd_create("state")
    os.write(state, json.dumps(known).encode())
    notify.send("FDSTORE=1\nFDNAME=state", [state])
    fds = [it.connection.fileno() for it in clients]
    for first in range(0, len(fds), FDS_PER_MESSAGE):
        notify.send("FDSTORE=1\nFDNAME=c", fds[first : first + FDS_PER_MESSAGE])
    notify.barrier()


def main():
    # A signal that comes early has to wait, not to kill.
    stop, stopped = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stopped.send(b"x"))
    notify = Notify()
    fds = {}
    for number, name in enumerate(os.environ["LISTEN_FDNAMES"].split(":"), 3):
        fds.setdefault(name, []).append(number)
    listener = socket.socket(fileno=fds["listener"][0])
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(stop, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    clients = {}

    def add(client):
        client.connection.setblocking(True)
        clients[client.connection] = client
        selector.register(client.connection, selectors.EVENT_READ)

    for client in take_back(fds, notify):
        add(client)
    notify.send("READY=1")
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if stop in ready:
            break
        for it in ready:
            if it is listener:
                try:
                    add(Client(listener.accept()[0]))
                except BlockingIOError:
                    pass
            elif not clients[it].read():
                selector.unregister(it)
                clients.pop(it).connection.close()
    store(list(clients.values()), notify)


if __name__ == "__main__":
    main()
