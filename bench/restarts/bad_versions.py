"""Restarts to programs that do not work: the last one must serve on, and be told why.

PROG is a symbolic link that is put onto another program before each restart, as a deployment
does it.
"""

import os
import subprocess
import sys
import time

import ways
from document import ms, table
from servers import Server
from support import SERVERS, Holder, Load, regularly, until_it_answers

START_TIMEOUT_MS = 3000
EVERY_S = 2

GOOD = f'#!/bin/sh\nexec /usr/bin/python3 {SERVERS}/slow.py --start 0.2 "$@"\n'

# What each does, and what `restart` must exit with.
BAD = {
    "exits at once": ("#!/bin/sh\necho 'no such database' >&2\nexit 3\n", 1),
    "exits after 0.5 s": ("#!/bin/sh\nsleep 0.5\necho 'no such table' >&2\nexit 4\n", 1),
    "hangs, and ignores SIGTERM": ("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n", 1),
    "never says that it is ready": ("#!/bin/sh\nexec sleep 1000\n", 1),
    "is not executable": ("#!/bin/sh\n", 1),
    "crashes at the first request": (
        "#!/usr/bin/python3\n"
        "import os, socket\n"
        "os.write(9, b'\\n')\n"
        "listener = socket.socket(fileno=3)\n"
        "listener.setblocking(True)\n"
        "listener.accept()\n"
        "os.abort()\n",
        0,
    ),
}


def install(folder, name, text, mode=0o755):
    program = folder / name.replace(" ", "-").replace(",", "")
    program.write_text(text)
    program.chmod(mode)
    return program


def switch(folder, program):
    """`current` is another program from one moment to the next."""
    (folder / "next").symlink_to(program)
    os.replace(folder / "next", folder / "current")


class Deployment(ways.Run):
    """`run` on the symbolic link; `deploy` says how `fdholder restart` ended."""

    def deploy(self, program):
        switch(self.holder.path.parent, program)
        command = [self.holder.program, "restart", self.holder.path, "web"]
        return subprocess.run(command, capture_output=True, text=True)


def measure(bench, holder, kind, good):
    text, code = BAD[kind]
    bad = install(bench.folder, kind, text, 0o644 if "executable" in kind else 0o755)
    switch(bench.folder, good)
    command, ready = [str(bench.folder / "current")], ("--ready-fd", "9")
    server = Server("web", command, ready=ready, telling=[*command, *ready])
    options = ["--start-timeout", str(START_TIMEOUT_MS), "--respawn"]
    way = Deployment(bench, holder, server, options)
    with ways.started(way):
        load, said, wrong = Load.open(bench, bench.options.rate), "", 0
        for _ in regularly(bench.options.restarts, EVERY_S):
            result = way.deploy(bad)
            said = result.stderr.strip() or result.stdout.strip()
            wrong += result.returncode != code
            if code == 0:
                time.sleep(1)  # until somebody sees what they have done, and rolls back
                way.deploy(good)
            else:
                switch(bench.folder, good)
            until_it_answers()
        outcome = load.finish()
    return outcome, said, wrong


def run(bench):
    if not bench.has_run():
        return "This fdholder has no `run`.", True
    rows, reached = [], True
    good = install(bench.folder, "good", GOOD)
    for kind, (_, code) in BAD.items():
        print(f"bad version: {kind}", file=sys.stderr)
        with Holder(bench) as holder:
            outcome, said, wrong = measure(bench, holder, kind, good)
        lines = "<br>".join(said.replace("|", "\\|").splitlines())
        rows.append([kind, f"{bench.options.restarts - wrong} of {bench.options.restarts}",
                     outcome["sent"], f"**{outcome['failed']:,}**", ms(outcome["p99.9"]),
                     ms(outcome["longest"]), lines])  # fmt: skip
        reached &= wrong == 0 and (code == 0 or outcome["failed"] == 0)
    headings = ["the next version", "exit code as expected", "requests", "failed"]
    return table([*headings, "p99.9", "longest", "what `restart` printed"], rows), reached
