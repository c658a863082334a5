"""Yelp's experiment: HAProxy is restarted every 100 ms under ten clients."""

import signal
import sys
import time

import ways
from document import ms, table
from servers import Server, haproxy
from support import ADDRESS, Holder, Load, children

CONNECTIONS = 10
EVERY_S = 0.1
P99_US, LONGEST_US = 3_000, 15_000


class Reload(ways.HaproxyReload):
    """Does not wait longer than until the next restart is due."""

    def restart(self):
        old = children(self.process.pid)
        self.process.send_signal(signal.SIGUSR2)
        end = time.monotonic() + EVERY_S
        while not children(self.process.pid) - old and time.monotonic() < end:
            time.sleep(0.005)


def measure(bench, way):
    with ways.started(way):
        load, restarts = Load.closed(bench, CONNECTIONS, bench.options.requests), 0
        due = time.monotonic()
        while load.is_running():
            way.restart()
            restarts += not isinstance(way, ways.NoRestart)
            due = max(due + EVERY_S, time.monotonic())
            time.sleep(max(0, due - time.monotonic()))
        outcome = load.finish()
    return outcome | {"restarts": restarts, "failed_restarts": getattr(way, "failed_restarts", 0)}


def run(bench):
    server = Server(
        # A master that was just started may miss SIGUSR1, and nothing tells `exec` when it does not.
        "HAProxy", haproxy(bench, "-db", "fd@3"), haproxy(bench, "-W", ADDRESS),
        stop=signal.SIGUSR1, ready=("--ready-notify",), telling=haproxy(bench, "-Ws", "fd@3"),
    )  # fmt: skip
    rows, undisturbed, missed = [], None, []
    for way in (ways.NoRestart, ways.Run, ways.StopThenStart, Reload):
        if way is ways.Run and not bench.has_run():
            continue
        print(f"HAProxy: {way.name}", file=sys.stderr)
        with Holder(bench) as holder:
            outcome = measure(bench, way(bench, holder, server))
        undisturbed = undisturbed or outcome
        times = [ms(outcome[name]) for name in ("p50", "p99", "longest")]
        per_second = round(outcome["sent"] / outcome["seconds"])
        rows.append([way.name, outcome["restarts"], outcome["sent"], per_second,
                     f"**{outcome['failed']:,}**", *times])  # fmt: skip
        if way is ways.Run:
            if outcome["p99"] > P99_US:
                missed.append(f"p99 is {ms(outcome['p99'])}")
            if outcome["longest"] > max(LONGEST_US, 2 * undisturbed["longest"]):
                missed.append(f"the longest takes {ms(outcome['longest'])}")
            if outcome["failed_restarts"]:
                missed.append(f"{outcome['failed_restarts']} restarts failed")
            if outcome["failed"]:
                missed.append(f"{outcome['failed']:,} failed")
    headings = ["restarted by", "restarts", "requests", "a second", "failed", "p50", "p99", "longest"]
    text = table(headings, rows)
    if bench.has_run():
        text += f"\n\n`fdholder run` and the aim: {', '.join(missed) or 'reached'}."
    return text, not missed
