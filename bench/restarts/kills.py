"""`run` and the holder are killed at random moments, under s6, which starts them again."""

import json
import os
import random
import signal
import subprocess
import sys
import time

from document import ms, table
from support import ADDRESS, SERVERS, Load, until, until_it_answers

S6 = "s6-2.13"

HOLDER = """\
#!/bin/sh
exec FOLDER/fdholder serve -1 --standby -v0 FOLDER/holder >&3 3>&-
"""

WEB = """\
#!/bin/sh
set -e
FOLDER/fdholder bind --nonblock FOLDER/holder web tcp:ADDRESS
exec FOLDER/fdholder COMMAND --fd web --wait 5000 FOLDER/holder -- \\
    /usr/bin/python3 SERVERS/slow.py --start 0.1
"""


class S6Program:
    """A program of Debian's s6, by the loader that it came with."""

    def __init__(self, peers):
        root = peers / S6
        loader = next(root.glob("usr/lib/*/ld-linux*.so*"))
        self.words = [str(loader), "--library-path", str(loader.parent)]
        self.programs = root / "usr/bin"

    def __call__(self, program, *arguments):
        return [*self.words, str(self.programs / program), *map(str, arguments)]


class Service:
    """A folder of a service, and the s6-supervise that looks after it."""

    def __init__(self, bench, s6, name, run):
        self.s6, self.folder = s6, bench.folder / "service" / name
        self.folder.mkdir(parents=True)
        (self.folder / "run").write_text(run)
        (self.folder / "run").chmod(0o755)
        if name == "holder":
            (self.folder / "notification-fd").write_text("3\n")
        self.supervise = subprocess.Popen(s6("s6-supervise", self.folder))

    def pid(self):
        command = self.s6("s6-svstat", "-o", "pid", self.folder)
        said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        return int(said) if said.isdigit() else None

    def kill(self):
        """False if it does not run at this moment."""
        pid = self.pid()
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def end(self):
        # -x: s6-supervise ends, too.
        subprocess.run(self.s6("s6-svc", "-xd", self.folder), check=False)
        try:
            self.supervise.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            self.supervise.wait()


def has_standby(bench):
    """A second kill while there is no standby loses what is held: docs/durability.md."""
    command = [bench.folder / "fdholder", "status", "--json", bench.folder / "holder"]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode != 0:
        return False
    return json.loads(said.stdout)["standby"] == "ready"


def measure(bench, command, seed):
    os.symlink(bench.fdholder, bench.folder / "fdholder")
    words = {"FOLDER": bench.folder, "ADDRESS": ADDRESS, "SERVERS": SERVERS, "COMMAND": command}

    def script(text):
        for word, value in words.items():
            text = text.replace(word, str(value))
        return text

    s6, chance = S6Program(bench.peers), random.Random(seed)
    holder = Service(bench, s6, "holder", script(HOLDER))
    web = Service(bench, s6, "web", script(WEB))
    try:
        until_it_answers()
        load, kills = Load.open(bench, bench.options.rate), {"web": 0, "holder": 0}
        while sum(kills.values()) < bench.options.kills:
            time.sleep(chance.uniform(0.1, 2))
            if chance.random() < 0.5:
                kills["web"] += web.kill()
            else:
                until(lambda: has_standby(bench), "the holder has a standby")
                kills["holder"] += holder.kill()
        until_it_answers()
        return load.finish(), kills
    finally:
        web.end()
        holder.end()


def run(bench):
    command = bench.options.kill or ("run --name web" if bench.has_run() else "exec")
    seed = random.randrange(1 << 32) if bench.options.seed is None else bench.options.seed
    print(f"kills: {command}, seed {seed}", file=sys.stderr)
    outcome, kills = measure(bench, command, seed)
    failures = outcome["failures"]
    refused = failures.pop("refused")
    others = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in failures.items() if count)
    headings = ["service", "kills of it", "kills of the holder", "requests", "refused"]
    headings += ["failed otherwise", "p50", "p99", "longest"]
    row = [f"`fdholder {command.split()[0]}`", kills["web"], kills["holder"], outcome["sent"]]
    row += [f"**{refused:,}**", others or "0"]
    row += [ms(outcome[name]) for name in ("p50", "p99", "longest")]
    return table(headings, [row]) + f"\n\nSeed {seed}.", refused == 0
