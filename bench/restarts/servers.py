"""The servers that are restarted: how each is started, stopped, and says that it is ready."""

import shutil
import signal
from dataclasses import dataclass, field

from support import ADDRESS, EXAMPLES, HOST, PORT, SERVERS

NGINX = """\
daemon DAEMON;
worker_processes 2;
pid nginx.pid;
error_log stderr error;
events { }
http {
    access_log off;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    server { listen ADDRESS; location / { return 200 "hello\\n"; } }
}
"""

HAPROXY = """\
defaults
    mode http
    timeout client 10s
frontend web
    bind ADDRESS
    http-request return status 200 content-type text/plain string "hello\\n"
"""


@dataclass
class Server:
    """`held` serves on descriptor 3; `alone` opens the socket itself."""

    name: str
    held: list
    alone: list = field(default_factory=list)
    stop: signal.Signals = signal.SIGTERM
    style: str = "systemd"
    # How `fdholder run` learns that it is ready, as the guides have it, and the command that tells it
    # where that is another one.
    ready: tuple = ("--ready-after", "1000")
    telling: list = None
    # Its own ways to be restarted: names in ways.OWN.
    own: tuple = ()
    # One request to /long is under way at every restart.
    has_long: bool = False
    # False for what hangs up on clients by itself when it is stopped.
    must_not_fail: bool = True

    def bind_options(self):
        return ["--nonblock"] if self.style == "nginx" else []


def configuration(bench, name, text):
    (bench.folder / name).write_text(text)
    return str(bench.folder / name)


def nginx(bench, daemon="off"):
    text = NGINX.replace("ADDRESS", ADDRESS).replace("DAEMON", daemon)
    # With its path: it executes itself.
    return [shutil.which("nginx"), "-e", "stderr", "-p", str(bench.folder), "-c",
            configuration(bench, f"nginx-{daemon}.conf", text)]  # fmt: skip


def haproxy(bench, mode, address):
    name = f"haproxy-{address.replace(':', '-')}.cfg"
    return ["haproxy", "-q", mode, "-f",
            configuration(bench, name, HAPROXY.replace("ADDRESS", address))]  # fmt: skip


def all_servers(bench):
    """Those of the open loop."""
    python = bench.python
    tells = ["--config", str(EXAMPLES / "python/gunicorn_ready.py")]
    node = ["node", str(EXAMPLES / "node/server.js")]
    return [
        Server(
            "nginx", nginx(bench), nginx(bench, "on"),
            stop=signal.SIGQUIT, style="nginx", own=("USR2, then QUIT",),
        ),
        Server(
            "HAProxy", haproxy(bench, "-Ws", "fd@3"), haproxy(bench, "-W", ADDRESS),
            stop=signal.SIGUSR1, ready=("--ready-notify",), own=("-W, USR2", "-sf"),
        ),
        Server(
            "gunicorn", gunicorn(python), [*gunicorn(python), "--bind", ADDRESS],
            ready=("--ready-fd", "4"), telling=gunicorn(python, *tells, "app:wsgi"), own=("HUP",),
        ),
        Server("uvicorn", uvicorn(python), ready=("--ready-notify",)),
        Server("Node", node, ready=("--ready-fd", "4"), telling=["env", "READY_FD=4", *node]),
        slow(3),
    ]  # fmt: skip


def gunicorn(python, *arguments):
    command = [f"{python}/gunicorn", "--no-control-socket", "--log-level", "error"]
    command += ["--workers", "2", "--chdir", str(EXAMPLES / "python")]
    return [*command, *(arguments or ["app:wsgi"])]


def uvicorn(python):
    return [f"{python}/python", str(EXAMPLES / "python/serve_uvicorn.py"), "app:asgi"]


def slow(start):
    command = ["/usr/bin/python3", str(SERVERS / "slow.py"), "--start", str(start)]
    ready = ("--ready-fd", "9")
    return Server("slow", command, ready=ready, telling=[*command, *ready], has_long=True)


def closed_loop_servers(bench):
    """Those of the closed loop, where each is also measured by itself."""
    python = bench.python
    asgi = gunicorn(python, "--worker-class", "asgi", "app:asgi")
    by_itself = [f"{python}/uvicorn", "--log-level", "error",
                 "--app-dir", str(EXAMPLES / "python"), "app:asgi"]  # fmt: skip
    alone = [*by_itself, "--host", HOST, "--port", str(PORT)]
    bind = ["--bind", ADDRESS]
    wsgi = gunicorn(python)
    return [
        Server("nginx", nginx(bench), nginx(bench), stop=signal.SIGQUIT, style="nginx"),
        Server("haproxy", haproxy(bench, "-db", "fd@3"), haproxy(bench, "-db", ADDRESS),
               stop=signal.SIGUSR1),
        Server("gunicorn", wsgi, [*wsgi, *bind]),
        Server("gunicorn, asgi", asgi, [*asgi, *bind], must_not_fail=False),
        Server("uvicorn, by serve_uvicorn.py", uvicorn(python), alone),
        Server("uvicorn, by itself", [*by_itself, "--fd", "3"], alone, must_not_fail=False),
    ]  # fmt: skip
