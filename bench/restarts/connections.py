"""Thousands of established connections to a server that is restarted and keeps them."""

import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque

import ways
from document import ms, table
from servers import Server
from support import HOST, PORT, SERVERS, Holder, end, regularly, until

KEEPER = Server("keeper", ["/usr/bin/python3", str(SERVERS / "keeper.py")])
FDS_MAX = 16_000
# Of the identifiers: all names together must fit into one variable.
SERVICE = "k"


class StopThenStart(ways.StopThenStart):
    """`fdholder exec` in a loop. What the server stored is passed on behind its listener."""

    def start(self):
        self.holder.bind("listener")
        self.launch()

    def launch(self):
        command = [self.holder.program, "exec", "--fd", "listener", "--notify", SERVICE]
        command += [self.holder.path, "--", *self.server.held]
        self.process = subprocess.Popen(command)

    def restart(self):
        end(self.process, self.server.stop)
        self.launch()

    def stop(self):
        end(self.process, self.server.stop)


class Run(ways.Run):
    """`fdholder run --stop-first`: the next one starts when the last one has stored."""

    def start(self):
        self.holder.bind("listener")
        command = [self.holder.program, "run", "--stop-first", "--name", "keeper"]
        command += ["--fd", "listener", "--notify", SERVICE]
        command += [self.holder.path, "--", *self.server.held]
        self.process = subprocess.Popen(command)

    def restart(self):
        self.holder.run("restart", "keeper")

    def stop(self):
        end(self.process)


class Crowd:
    """Clients that each send a line now and then, on a schedule, and know their number."""

    def __init__(self, size, rate):
        self.rate = rate
        self.selector = selectors.DefaultSelector()
        self.clients = []
        for _ in range(size):
            client = socket.create_connection((HOST, PORT), timeout=30)
            client.setblocking(False)
            self.clients.append(client)
        self.count = dict.fromkeys(self.clients, 0)
        self.due = {client: deque() for client in self.clients}
        self.gone, self.wrong, self.latencies = 0, 0, []
        for client in self.clients:
            self.selector.register(client, selectors.EVENT_READ)

    def play(self, stop):
        """Until `stop` is set and every line is answered, or for 30 s more."""
        start, number, last = time.monotonic(), 0, None
        while self.due:
            now = time.monotonic()
            if stop.is_set():
                last = last or now + 30
                if now > last or not any(self.due.values()):
                    break
            elif (due := start + number / self.rate) <= now:
                self.send(self.clients[number % len(self.clients)], due)
                number += 1
                continue
            wait = 0.1 if last else max(0, start + number / self.rate - now)
            for key, _ in self.selector.select(wait):
                self.read(key.fileobj)
        self.wrong += sum(len(due) for due in self.due.values())

    def send(self, client, due):
        if client not in self.due:
            return
        try:
            client.send(b"tick\n")
            self.due[client].append(due)
        except OSError:
            self.lose(client)

    def read(self, client):
        try:
            received = client.recv(4096)
        except OSError:
            received = b""
        if not received:
            self.lose(client)
            return
        for line in received.split():
            self.count[client] += 1
            # A number can come in two parts only if a window of bytes is full: never here.
            self.wrong += int(line) != self.count[client] or not self.due[client]
            if self.due[client]:
                self.latencies.append(time.monotonic() - self.due[client].popleft())

    def lose(self, client):
        self.gone += 1
        self.selector.unregister(client)
        del self.due[client]
        client.close()


def measure(bench, way):
    options = bench.options
    way.start()
    try:
        until(listens, "the server accepts")
        crowd, stop = Crowd(options.clients, options.rate), threading.Event()
        player = threading.Thread(target=crowd.play, args=(stop,))
        player.start()
        try:
            for _ in regularly(options.restarts, options.seconds / options.restarts):
                way.restart()
            time.sleep(options.seconds / options.restarts)
        finally:
            stop.set()
            player.join()
            for client in list(crowd.due):
                client.close()
        return crowd
    finally:
        way.stop()


def listens():
    try:
        with socket.create_connection((HOST, PORT), timeout=20) as client:
            client.sendall(b"tick\n")
            return client.recv(10) == b"1\n"
    except OSError:
        return False


def run(bench):
    rows, reached = [], True
    for way in (Run, StopThenStart):
        if way is Run and not bench.has_run():
            continue
        print(f"connections: {way.name}", file=sys.stderr)
        with Holder(bench, "-n", str(FDS_MAX)) as holder:
            crowd = measure(bench, way(bench, holder, KEEPER))
        latencies = sorted(int(it * 1e6) for it in crowd.latencies)
        times = [latencies[len(latencies) * part // 1000 - 1] for part in (500, 999, 1000)]
        rows.append([way.name, bench.options.restarts, bench.options.clients, f"**{crowd.gone:,}**",
                     len(latencies), crowd.wrong, *map(ms, times)])  # fmt: skip
        reached &= crowd.gone == 0 and crowd.wrong == 0
    headings = ["restarted by", "restarts", "connections", "disconnected", "lines answered"]
    return table([*headings, "unanswered or wrong", "p50", "p99.9", "longest"], rows), reached
