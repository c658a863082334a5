"""Restarts real servers under the full load of wrk, with a holder and without.

    restarts.py FDHOLDER PYTHON DOCUMENT [SERVER...]

FDHOLDER is the program, PYTHON a folder with gunicorn, uvicorn and their python. Writes the
table into DOCUMENT, unless only some servers are named. Fails if a request failed that must not.
"""

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RESTARTS = 20
SECONDS = 40
HOST, PORT = "127.0.0.1", 18099
ADDRESS = f"{HOST}:{PORT}"
WRK = ["wrk", "-t2", "-c32", f"-d{SECONDS}s", "-H", "Connection: close", f"http://{ADDRESS}/"]
APPS = Path(__file__).resolve().parent.parent / "examples/python"

NGINX = """\
daemon off;
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
    """How it is started on the socket it is passed, and by itself; and how it is stopped."""

    name: str
    held: list
    alone: list
    stop: signal.Signals = signal.SIGTERM
    style: str = "systemd"
    # False for what hangs up on clients by itself when it is stopped.
    must_not_fail: bool = True


def servers(folder, python):
    def configuration(name, text):
        (folder / name).write_text(text)
        return str(folder / name)

    nginx = ["nginx", "-e", "stderr", "-p", str(folder), "-c"]
    nginx.append(configuration("nginx.conf", NGINX.replace("ADDRESS", ADDRESS)))
    haproxy = ["haproxy", "-q", "-db", "-f"]
    held = configuration("held.cfg", HAPROXY.replace("ADDRESS", "fd@3"))
    alone = configuration("alone.cfg", HAPROXY.replace("ADDRESS", ADDRESS))
    gunicorn = [f"{python}/gunicorn", "--no-control-socket", "--log-level", "error"]
    gunicorn += ["--workers", "2", "--chdir", str(APPS)]
    wsgi, asgi = [*gunicorn, "app:wsgi"], [*gunicorn, "--worker-class", "asgi", "app:asgi"]
    bind = ["--bind", ADDRESS]
    uvicorn = [f"{python}/uvicorn", "--log-level", "error", "--app-dir", str(APPS), "app:asgi"]
    ours = [f"{python}/python", str(APPS / "serve_uvicorn.py"), "app:asgi"]
    by_itself = [*uvicorn, "--host", HOST, "--port", str(PORT)]
    return [
        Server("nginx", nginx, nginx, stop=signal.SIGQUIT, style="nginx"),
        Server("haproxy", [*haproxy, held], [*haproxy, alone], stop=signal.SIGUSR1),
        Server("gunicorn", wsgi, [*wsgi, *bind]),
        Server("gunicorn, asgi", asgi, [*asgi, *bind], must_not_fail=False),
        Server("uvicorn, by serve_uvicorn.py", ours, by_itself),
        Server("uvicorn, by itself", [*uvicorn, "--fd", "3"], by_itself, must_not_fail=False),
    ]


class Holder:
    def __init__(self, fdholder, folder):
        self.packaged, self.program, self.path = fdholder, folder / "fdholder", folder / "holder"
        self.install()
        command = [self.program, "serve", "-1", "-v0", self.path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.process.stdout.read(1)

    def install(self):
        shutil.copy(self.packaged, self.program.with_suffix(".new"))
        os.replace(self.program.with_suffix(".new"), self.program)

    def run(self, command, *arguments):
        command = [self.program, command, self.path, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def upgrade(self):
        self.install()
        self.run("upgrade")


def until_it_answers():
    while True:
        try:
            with socket.create_connection((HOST, PORT)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if client.recv(100).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            time.sleep(0.01)


def measure(command, stop, in_the_middle):
    """Requests, and how many failed, of a server that is restarted again and again."""

    def start():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    server = start()
    until_it_answers()
    wrk = subprocess.Popen(WRK, stdout=subprocess.PIPE, text=True)
    begin = time.monotonic()
    for number in range(1, RESTARTS + 1):
        time.sleep(max(0, begin + number * SECONDS / (RESTARTS + 2) - time.monotonic()))
        if number == RESTARTS // 2:
            in_the_middle()
        server.send_signal(stop)
        server.wait()
        server = start()
    if wrk.poll() is not None:
        raise SystemExit(f"{command[0]}: wrk ended before the last restart")
    report = wrk.communicate()[0]
    server.send_signal(stop)
    server.wait()
    sys.stderr.write(report)
    requests = int(re.search(r"(\d+) requests in", report)[1])
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    others = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    failed = sum(int(count) for it in (errors, others) if it for count in it.groups())
    return requests, failed


def machine(python):
    def version(*command):
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        return re.search(r"\d+\.\d+[\w.]*", said.stdout + said.stderr)[0]

    programs = {"nginx": ["nginx", "-v"], "HAProxy": ["haproxy", "-v"]}
    programs |= {name: [f"{python}/{name}", "--version"] for name in ("gunicorn", "uvicorn")}
    versions = ", ".join(f"{name} {version(*command)}" for name, command in programs.items())
    return f"{versions}; Linux {platform.release()}, {os.cpu_count()} processors."


def main():
    fdholder, python, document, *names = sys.argv[1:]
    lines = [
        machine(python), "",
        "| server | stopped by | requests with the holder | failed | requests without | failed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        holder = Holder(fdholder, folder)
        for it in servers(folder, python):
            if names and it.name not in names:
                continue
            holder_exec = [holder.program, "exec", "--fd", "web", "--env-style", it.style]
            subprocess.run(
                [holder.program, "bind", "--nonblock", holder.path, "web", f"tcp:{ADDRESS}"], check=True
            )
            held, failed = measure([*holder_exec, holder.path, "--", *it.held], it.stop, holder.upgrade)
            holder.run("delete", "web")
            alone, refused = measure(it.alone, it.stop, lambda: None)
            bad |= it.must_not_fail and failed > 0
            lines.append(
                f"| {it.name} | {it.stop.name} | {held:,} | **{failed:,}** | {alone:,} | {refused:,} |"
            )
        holder.process.terminate()
        holder.process.wait()
    table = "\n".join(lines)
    print(table)
    if not names:
        document = Path(document)
        before, rest = document.read_text().split("<!-- measured: begin -->\n")
        after = rest.split("<!-- measured: end -->")[1]
        marked = f"<!-- measured: begin -->\n{table}\n<!-- measured: end -->"
        document.write_text(before + marked + after)
    return bad


if __name__ == "__main__":
    sys.exit(main())
