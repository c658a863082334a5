"""What all parts share: the programs, the address, the holder, the load."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HOST, PORT = "127.0.0.1", 18099
ADDRESS = f"{HOST}:{PORT}"
ROOT = Path(__file__).resolve().parent.parent.parent
SERVERS = ROOT / "bench/servers"
EXAMPLES = ROOT / "examples"


@dataclass
class Bench:
    """The programs under test, a folder for this run, and what the command line says."""

    fdholder: str
    generator: str
    python: str
    peers: Path
    folder: Path
    options: object

    def has_run(self):
        """Whether this fdholder has the command `run`."""
        help_of_run = subprocess.run([self.fdholder, "run", "--help"], capture_output=True)
        return help_of_run.returncode == 0


class Holder:
    """`fdholder serve` in the folder, with a copy of the program that can be replaced."""

    def __init__(self, bench, *options):
        self.packaged, self.program = bench.fdholder, bench.folder / "fdholder"
        self.path = bench.folder / "holder"
        self.install()
        command = [self.program, "serve", "-1", "-v0", *options, self.path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.process.stdout.read(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def install(self):
        shutil.copy(self.packaged, self.program.with_suffix(".new"))
        os.replace(self.program.with_suffix(".new"), self.program)

    def run(self, command, *arguments):
        command = [self.program, command, self.path, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def bind(self, identifier="web", *options):
        command = [self.program, "bind", *options, self.path, identifier, f"tcp:{ADDRESS}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def delete(self, identifier="web"):
        self.run("delete", identifier)

    def upgrade(self):
        self.install()
        self.run("upgrade")


class Load:
    """`fdholder-bench load`; `arguments` say at which pace."""

    def __init__(self, bench, *arguments):
        command = [bench.generator, "load", ADDRESS, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @classmethod
    def open(cls, bench, rate):
        """Sends so many a second until `finish`."""
        return cls(bench, "--rate", rate, "--seconds", 24 * 3600, "--until-stdin-ends")

    @classmethod
    def closed(cls, bench, connections, requests):
        return cls(bench, "--connections", connections, "--requests", requests)

    def is_running(self):
        return self.process.poll() is None

    def finish(self):
        """What it measured. An open loop sends nothing more."""
        said = self.process.communicate()[0]
        if self.process.returncode != 0:
            raise SystemExit("the load generator failed")
        sys.stderr.write(said)
        return json.loads(said)


class Long:
    """One request to /long, in a thread of its own. It is under way when this returns."""

    def __init__(self):
        self.failure = "it is not finished"
        self.thread = threading.Thread(target=self.ask)
        self.thread.start()
        time.sleep(0.1)  # until the server has accepted it

    def ask(self):
        try:
            connection = http.client.HTTPConnection(HOST, PORT, timeout=60)
            connection.request("GET", "/long", headers={"Connection": "close"})
            answer = connection.getresponse()
            whole = answer.read() == b"hello\n" and answer.status == 200
            self.failure = None if whole else f"status {answer.status}"
        except OSError as error:
            self.failure = str(error)
        except http.client.HTTPException as error:
            self.failure = repr(error)

    def failed(self):
        self.thread.join()
        if self.failure:
            print(f"a request to /long failed: {self.failure}", file=sys.stderr)
        return self.failure is not None


def until(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def until_it_answers():
    until(answers, "the server answers")


def answers():
    try:
        with socket.create_connection((HOST, PORT), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return client.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def children(pid):
    try:
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except FileNotFoundError:
        return set()


def end(process, stop=signal.SIGTERM, seconds=60):
    """Stops a process that was started here, in order if it does so in time."""
    process.send_signal(stop)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        print(f"{process.args[0]} was killed: it did not stop", file=sys.stderr)


def regularly(count, gap):
    """Counts, every `gap` seconds; later where the last turn took longer."""
    due = time.monotonic() + gap / 2
    for number in range(count):
        time.sleep(max(0, due - time.monotonic()))
        due = max(due, time.monotonic()) + gap
        yield number
