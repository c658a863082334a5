"""Ways to restart a server: each starts it, restarts it any number of times, and stops it.

`restart` returns when the next generation serves, as far as that way can tell.
"""

import contextlib
import os
import signal
import subprocess
import time

from servers import haproxy
from support import ADDRESS, children, end, until, until_it_answers


@contextlib.contextmanager
def started(way):
    """A server that answers, and is stopped in any case."""
    way.start()
    try:
        until_it_answers()
        yield
    finally:
        way.stop()


class StopThenStart:
    """`fdholder exec` in a loop, as a supervisor runs it."""

    name = "stop, then start"

    def __init__(self, bench, holder, server):
        self.holder, self.server = holder, server

    def start(self):
        self.holder.bind("web", *self.server.bind_options())
        self.launch()

    def launch(self):
        command = [self.holder.program, "exec", "--fd", "web", "--env-style", self.server.style]
        command += [self.holder.path, "--", *self.server.held]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def restart(self):
        end(self.process, self.server.stop)
        self.launch()
        until_it_answers()

    def stop(self):
        end(self.process, self.server.stop)
        self.holder.delete()


class NoRestart(StopThenStart):
    """The undisturbed run, which the others are compared with."""

    name = "no restart"

    def restart(self):
        pass


class Run:
    """`fdholder run`, told by `fdholder restart`, which returns when the restart is done."""

    name = "**fdholder run**"

    def __init__(self, bench, holder, server, options=()):
        self.holder, self.server, self.options = holder, server, options
        self.failed_restarts = 0

    def start(self):
        self.holder.bind("web", *self.server.bind_options())
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)

    def command(self):
        ready, program = self.server.ready, self.server.telling or self.server.held
        stop = self.server.stop.name.removeprefix("SIG")
        command = [self.holder.program, "run", "--name", "web", "--fd", "web"]
        command += ["--env-style", self.server.style, "--stop-signal", stop, *ready]
        return [*command, *self.options, self.holder.path, "--", *program]

    def restart(self):
        command = [self.holder.program, "restart", self.holder.path, "web"]
        self.failed_restarts += subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0

    def stop(self):
        end(self.process)
        self.holder.delete()


class NginxUpgrade:
    """nginx's own: SIGUSR2 starts another master, SIGQUIT ends the last one."""

    name = "USR2, then QUIT"

    def __init__(self, bench, holder, server):
        self.server, self.file = server, bench.folder / "nginx.pid"

    def start(self):
        # It must be a daemon: nginx ignores SIGUSR2 while the process that started it lives.
        subprocess.run(self.server.alone, check=True)

    def pid(self):
        try:
            return int(self.file.read_text() or 0)
        except FileNotFoundError:
            return 0

    def restart(self):
        old = self.pid()
        os.kill(old, signal.SIGUSR2)
        until(lambda: self.pid() not in (0, old), "nginx has another master")
        until(lambda: children(self.pid()), "nginx has workers")
        os.kill(old, signal.SIGQUIT)
        until(lambda: not os.path.exists(f"/proc/{old}"), "the last nginx has ended")

    def stop(self):
        pid = self.pid()
        os.kill(pid, signal.SIGQUIT)
        until(lambda: not os.path.exists(f"/proc/{pid}"), "nginx has ended")


class MasterReload:
    """A master that is told by a signal to replace its workers."""

    def __init__(self, bench, holder, server):
        self.server = server

    def start(self):
        self.process = subprocess.Popen(self.server.alone, stdout=subprocess.DEVNULL)

    def restart(self):
        old = children(self.process.pid)
        self.process.send_signal(self.signal)
        until(lambda: children(self.process.pid) - old, f"{self.server.name} has new workers")
        if self.waits_for_old:
            until(lambda: not children(self.process.pid) & old, "the old workers have ended")

    def stop(self):
        end(self.process)


class HaproxyReload(MasterReload):
    name, signal, waits_for_old = "-W, USR2", signal.SIGUSR2, False


class GunicornReload(MasterReload):
    name, signal, waits_for_old = "HUP", signal.SIGHUP, True


class HaproxySf:
    """HAProxy's older way: the next one opens the same port and tells the last one to finish."""

    name = "-sf"

    def __init__(self, bench, holder, server):
        self.command, self.old = haproxy(bench, "-db", ADDRESS), []

    def start(self):
        self.process = subprocess.Popen(self.command)

    def restart(self):
        self.old.append(self.process)
        command = [*self.command, "-sf", str(self.process.pid)]
        self.process = subprocess.Popen(command)
        time.sleep(0.5)
        self.old = [it for it in self.old if it.poll() is None]

    def stop(self):
        for process in [*self.old, self.process]:
            end(process)


OWN = {it.name: it for it in (NginxUpgrade, HaproxyReload, HaproxySf, GunicornReload)}


def of(server):
    return [NoRestart, Run, StopThenStart, *(OWN[name] for name in server.own)]
