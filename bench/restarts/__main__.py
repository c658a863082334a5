"""Restarts servers under load, in several experiments, and makes their tables.

    python3 bench/restarts FDHOLDER FDHOLDER-BENCH PEERS DOCUMENT [OPTIONS] [PART...]

Without PART and options it does everything and writes DOCUMENT. Fails if something failed
that must not.
"""

import argparse
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import bad_versions
import closed_loop
import connections
import kills
import open_loop
import yelp
from document import write
from support import Bench

PARTS = {
    "open-loop": open_loop,
    "yelp": yelp,
    "bad-versions": bad_versions,
    "connections": connections,
    "kills": kills,
    "closed-loop": closed_loop,
}

# What a table in the document is measured with, unless the part says otherwise.
DEFAULTS = {
    "seconds": 60, "rate": 500, "restarts": 20, "requests": 1_000_000,
    "clients": 10_000, "kills": 100, "server": None, "way": None, "kill": None, "seed": None,
}  # fmt: skip
PART_DEFAULTS = {"bad-versions": {"restarts": 10}}


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/restarts", argument_default=argparse.SUPPRESS,
        description="Restart servers under load. Without arguments: everything, into the document.",
    )  # fmt: skip
    for path in ("fdholder", "generator", "peers", "document"):
        parser.add_argument(path, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("part", nargs="*", default=[], help=f"only these: {', '.join(PARTS)}")
    parser.add_argument("--write", action="store_true", help="write the tables of these parts")
    parser.add_argument("--seconds", type=int, help="how long a row takes, at least [60]")
    parser.add_argument("--rate", type=int, help="requests or lines a second [500]")
    parser.add_argument("--restarts", type=int, help="in each row [20; bad-versions: 10]")
    parser.add_argument("--requests", type=int, help="in each row of yelp [1000000]")
    parser.add_argument("--clients", type=int, help="of connections [10000]")
    parser.add_argument("--kills", type=int, help="[100]")
    parser.add_argument("--kill", help="what is killed: a command of fdholder [run --name web]")
    parser.add_argument("--seed", type=int, help="of the moments of kills")
    parser.add_argument("--server", action="append", help="only this server of the table")
    parser.add_argument("--way", action="append", help="only this way, and the undisturbed run")
    return vars(parser.parse_args())


def machine(python):
    def version(*command):
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        return re.search(r"\d+\.\d+[\w.]*", said.stdout + said.stderr)[0]

    programs = {"nginx": ["nginx", "-v"], "HAProxy": ["haproxy", "-v"], "Node": ["node", "-v"]}
    programs |= {name: [f"{python}/{name}", "--version"] for name in ("gunicorn", "uvicorn")}
    versions = ", ".join(f"{name} {version(*command)}" for name, command in programs.items())
    return f"{versions}; Linux {platform.release()}, {os.cpu_count()} processors."


def main():
    given = arguments()
    paths = [given.pop(name) for name in ("fdholder", "generator", "peers", "document")]
    fdholder, generator, peers, document = (path.resolve() for path in paths)
    names = given.pop("part")
    for name in names:
        if name not in PARTS:
            raise SystemExit(f"there is no part '{name}': {', '.join(PARTS)}")
    writes = given.pop("write", False) or not (names or given)
    if writes and given:
        raise SystemExit("--write: a table in the document is measured with the defaults")
    # A server, the holder and the clients each have thousands of descriptors.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    all_reached = True
    for name in names or PARTS:
        options = argparse.Namespace(**DEFAULTS | PART_DEFAULTS.get(name, {}) | given)
        with tempfile.TemporaryDirectory() as folder:
            python = str(peers / "python/bin")
            bench = Bench(str(fdholder), str(generator), python, peers, Path(folder), options)
            if writes and name != "closed-loop" and not bench.has_run():
                raise SystemExit("this fdholder has no `run`: nothing is written")
            text, reached = PARTS[name].run(bench)
            all_reached &= reached
            text = f"{machine(python)}\n\n{text}"
        print(f"{name}{'' if reached else ': THE AIM IS MISSED'}\n\n{text}\n", flush=True)
        if writes:
            write(document, name, text)
    return not all_reached


if __name__ == "__main__":
    sys.exit(main())
