"""Numbers the lines of each client, and goes on where it was when it is restarted.

    fdholder exec --fd-prefix counter/ HOLDER -- python counter.py HOLDER

On SIGTERM it stores each client's connection as counter/conn/N, and what it knows of that
client in a memfd as counter/conn/N.state. The next one is passed all of that together with
the listening socket, counter/listener, and no client notices anything.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys

LISTENER = "counter/listener"


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
        """What cannot be seen from the connection, in a file that is nowhere."""
        file = os.memfd_create("state")
        os.write(file, json.dumps([self.count, self.pending]).encode())
        return file


def passed():
    """What fdholder exec has passed on, by identifier."""
    names = os.environ.pop("LISTEN_FDNAMES").split(":")
    return {name: number for number, name in enumerate(names, 3)}


def take_back(fds, holder):
    clients = []
    for name in [name for name in fds if name + ".state" in fds]:
        count, pending = json.loads(os.pread(fds[name + ".state"], 1 << 20, 0))
        clients.append(Client(socket.socket(fileno=fds[name]), count, pending))
        os.close(fds[name + ".state"])
        # Or the holder would keep the connection open when this program closes it.
        for held in (name, name + ".state"):
            subprocess.run(["fdholder", "delete", holder, held], check=True)
    return clients


def store(clients, holder):
    """All of them in one step: setdump reads from the environment what is to be held."""
    held = []
    for number, client in enumerate(clients, 1):
        held.append((f"counter/conn/{number}", client.connection.fileno()))
        held.append((f"counter/conn/{number}.state", client.state()))
    env = {"S6_FD#": str(len(held)), **os.environ}
    for index, (name, fd) in enumerate(held):
        env[f"S6_FDID_{index}"], env[f"S6_FD_{index}"] = name, str(fd)
    fds = [fd for _, fd in held]
    subprocess.run(["fdholder", "setdump", holder], env=env, pass_fds=fds, check=True)


def main(holder):
    # A signal that comes early has to wait, not to kill.
    stop, stopped = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stopped.send(b"x"))
    fds = passed()
    listener = socket.socket(fileno=fds[LISTENER])
    listener.setblocking(False)
    clients = take_back(fds, holder)
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
    if clients:
        store(clients, holder)


if __name__ == "__main__":
    main(sys.argv[1])
