"""Restarts under a load that does not wait: what clients see of them."""

import sys
import time

import servers
import ways
from document import ms, table
from support import Holder, Load, Long, regularly
from ways import started

P999_AT_MOST, LONGEST_MORE_AT_MOST_US = 1.5, 50_000


def measure(bench, way, has_long):
    """One row: a server that is restarted again and again."""
    options = bench.options
    with started(way):
        Load.closed(bench, 2, 200).finish()  # what a first request pays is not a restart's
        load, begin = Load.open(bench, options.rate), time.monotonic()
        long = []
        for _ in regularly(options.restarts, options.seconds / options.restarts):
            if has_long:
                long.append(Long())
            way.restart()
        time.sleep(max(0, options.seconds - (time.monotonic() - begin)))
        failed = sum(it.failed() for it in long)
        outcome = load.finish()
    outcome["failed"] += failed
    outcome["failed_restarts"] = getattr(way, "failed_restarts", 0)
    return outcome


def verdict(outcome, undisturbed):
    """What of the aim is missed."""
    missed = []
    if outcome["failed"]:
        missed.append(f"{outcome['failed']:,} failed")
    if outcome["failed_restarts"]:
        missed.append(f"{outcome['failed_restarts']} restarts failed")
    ratio = outcome["p99.9"] / undisturbed["p99.9"]
    if ratio > P999_AT_MOST:
        missed.append(f"p99.9 is {ratio:.1f} × the undisturbed one")
    more = outcome["longest"] - undisturbed["longest"]
    if more > LONGEST_MORE_AT_MOST_US:
        missed.append(f"the longest takes {ms(more)} more")
    return ", ".join(missed)


def run(bench):
    """The table, and whether `run` reaches its aim."""
    options = bench.options
    rows, verdicts, late, reached = [], [], 0, True
    for server in servers.all_servers(bench):
        if options.server and server.name not in options.server:
            continue
        undisturbed = None
        for way in ways.of(server):
            if way is ways.Run and not bench.has_run():
                continue
            if options.way and way is not ways.NoRestart and way.name.strip("*") not in options.way:
                continue
            print(f"{server.name}: {way.name}", file=sys.stderr)
            with Holder(bench) as holder:
                outcome = measure(bench, way(bench, holder, server), server.has_long)
            undisturbed = undisturbed or outcome
            late = max(late, outcome["lag_p99"])
            times = [ms(outcome[name]) for name in ("p50", "p99", "p99.9", "longest")]
            rows.append([server.name, way.name, outcome["sent"], f"**{outcome['failed']:,}**",
                         *times, outcome["listen_overflows"]])  # fmt: skip
            if way is ways.Run:
                missed = verdict(outcome, undisturbed)
                verdicts.append(f"{server.name}: {missed or 'reached'}")
                reached &= not missed
    headings = ["server", "restarted by", "requests", "failed"]
    headings += ["p50", "p99", "p99.9", "longest", "ListenOverflows"]
    text = table(headings, rows)
    text += f"\n\nIn each row the generator sent 99 % of its requests at most {ms(late)} late."
    if verdicts:
        text += "\n\n`fdholder run` and the aim: " + "; ".join(verdicts) + "."
    return text, reached
