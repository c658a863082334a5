"""Numbers the lines of each client, and continues where it was when it is restarted.

    fdholder run --stop-first --bind listener=tcp:... --notify counter -- python counter.py

On SIGTERM it stores each client's connection as conn-N, and what it knows of that client in a memfd
as state-N, as programs do in systemd's descriptor store (FDSTORE=1). The next process is passed all
of that behind the listening socket, and no client notices anything.
"""

import json
import os
import select
import signal
import socket


class Client:
    def __init__(self, connection, count=0, pending=""):
        self.connection, self.count, self.pending = connection, count, pending

    def read(self):
        """Answers whole lines; false when the client has gone."""
        received = self.connection.recv(4096)
        *lines, self.pending = (self.pending + received.decode("latin-1")).split("\n")
        for _ in lines:
            self.count += 1
            self.connection.sendall(b"%d\n" % self.count)
        return received != b""

    def state(self):
        """What cannot be seen from the connection, in memory that outlives this process."""
        file = os.memfd_create("state")
        os.write(file, json.dumps([self.count, self.pending]).encode())
        return file


def notify(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(to, [text.encode()], fds)


def passed():
    """What run has passed on, by name."""
    names = os.environ.pop("LISTEN_FDNAMES").split(":")
    return {name: number for number, name in enumerate(names, 3)}


def take_back(fds):
    clients = []
    for name in [name for name in fds if name.startswith("state-")]:
        connection = fds.get(name.replace("state", "conn"))
        # Without one, the client has gone meanwhile.
        if connection is not None:
            count, pending = json.loads(os.pread(fds[name], 1 << 20, 0))
            clients.append(Client(socket.socket(fileno=connection), count, pending))
        os.close(fds[name])
    # Or the holder would keep a connection open when this program closes it.
    for name in fds:
        if name != "listener":
            notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    return clients


def store(clients):
    for number, client in enumerate(clients, 1):
        notify(f"FDSTORE=1\nFDNAME=conn-{number}", client.connection.fileno())
        notify(f"FDSTORE=1\nFDNAME=state-{number}", client.state())
    # It is closed once all before it was read.
    read, write = os.pipe()
    notify("BARRIER=1", write)
    os.close(write)
    os.read(read, 1)


def main():
    # A signal that comes early has to wait, not to kill.
    stop, stopped = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stopped.send(b"x"))
    fds = passed()
    listener = socket.socket(fileno=fds["listener"])
    listener.setblocking(False)
    clients = take_back(fds)
    notify("READY=1")
    while True:
        by_socket = {client.connection: client for client in clients}
        ready = select.select([stop, listener, *by_socket], [], [])[0]
        if stop in ready:
            break
        for it in ready:
            if it is listener:
                connection, _ = listener.accept()
                connection.setblocking(True)
                clients.append(Client(connection))
            elif not by_socket[it].read():
                clients.remove(by_socket[it])
                it.close()
    store(clients)


if __name__ == "__main__":
    main()
