"""Restarts under as many requests as the machine can take, with a holder and without."""

import re
import subprocess
import sys

import servers
from document import table
from support import ADDRESS, Holder, end, regularly, until_it_answers


def wrk(seconds):
    return ["wrk", "-t2", "-c32", f"-d{seconds}s", "-H", "Connection: close", f"http://{ADDRESS}/"]


def measure(bench, command, stop, in_the_middle):
    """Requests, and how many failed, of a server that is restarted again and again."""

    def start():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    options = bench.options
    server = start()
    until_it_answers()
    seconds = options.seconds * 2 // 3
    load = subprocess.Popen(wrk(seconds), stdout=subprocess.PIPE, text=True)
    for number in regularly(options.restarts, seconds / (options.restarts + 2)):
        if number == options.restarts // 2:
            in_the_middle()
        end(server, stop)
        server = start()
    if load.poll() is not None:
        raise SystemExit(f"{command[0]}: wrk ended before the last restart")
    report = load.communicate()[0]
    end(server, stop)
    sys.stderr.write(report)
    requests = int(re.search(r"(\d+) requests in", report)[1])
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    failed = sum(int(count) for it in (errors, others) if it for count in it.groups())
    return requests, failed


def run(bench):
    rows, reached = [], True
    with Holder(bench) as holder:
        for it in servers.closed_loop_servers(bench):
            if bench.options.server and it.name not in bench.options.server:
                continue
            command = [holder.program, "exec", "--fd", "web", "--env-style", it.style]
            holder.bind("web", "--nonblock")
            held, failed = measure(
                bench, [*command, holder.path, "--", *it.held], it.stop, holder.upgrade
            )
            holder.delete()
            alone, refused = measure(bench, it.alone, it.stop, lambda: None)
            reached &= failed == 0 or not it.must_not_fail
            rows.append([it.name, it.stop.name, held, f"**{failed:,}**", alone, refused])
    headings = ["server", "stopped by", "requests with the holder", "failed"]
    return table([*headings, "requests without", "failed"], rows), reached
