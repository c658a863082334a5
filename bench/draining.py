"""How much processor time servers take while they drain: draining.py FDHOLDER PYTHON_BIN.

Each server runs under `fdholder run`. One request takes 10 s. SIGHUP asks for a restart; once the
last generation has been told to stop, its processor time is read twice, 5 s apart. Meanwhile a
client connects 20 times a second. With --stop-first nobody accepts these until it has ended.
"""

import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PORT, BACKEND_PORT = 18098, 18097
LONG_S, MEASURED_S = 10, 5
ADDRESS = ("127.0.0.1", PORT)

FILES = {
    "nginx.conf": """
daemon off;
pid nginx.pid;
error_log stderr;
events { }
http {
    access_log off;
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
    uwsgi_temp_path temp; scgi_temp_path temp;
    server { listen 127.0.0.1:%d; location / { proxy_pass http://127.0.0.1:%d; } }
}
""" % (PORT, BACKEND_PORT),
    "haproxy.cfg": """
defaults
    mode http
    timeout client 60s
    timeout connect 5s
    timeout server 60s
frontend web
    bind fd@3
    default_backend slow
backend slow
    server slow 127.0.0.1:%d
""" % BACKEND_PORT,
    "slow.py": """
import asyncio, time
def seconds(path): return %d if path == "/long" else 0
def wsgi(environ, start_response):
    time.sleep(seconds(environ["PATH_INFO"]))
    start_response("200 OK", [("Content-Length", "6")])
    return [b"hello\\n"]
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(seconds(scope["path"]))
        headers = [(b"content-length", b"6")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello\\n"})
""" % LONG_S,
    "server.js": """
const server = require("http").createServer((request, response) =>
    setTimeout(() => response.end("hello\\n"), request.url === "/long" ? %d : 0));
server.listen({ fd: 3 });
process.on("SIGTERM", () => server.close());
""" % (LONG_S * 1000),
}


class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(LONG_S if self.path == "/long" else 0)
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, *_):
        pass


def ask(path):
    with socket.create_connection(ADDRESS, 60) as client:
        client.settimeout(60)
        client.sendall(b"GET %s HTTP/1.0\r\nHost: x\r\n\r\n" % path)
        answer = b""
        while more := client.recv(4096):
            answer += more
    return b"hello" in answer


def ticks(leader):
    """Processor time of a process, its group and their children."""
    stats = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                stats[int(pid)] = file.read().rsplit(") ", 1)[1].split()
        except OSError:
            pass

    def belongs(pid):
        while pid in stats:
            if pid == leader or int(stats[pid][2]) == leader:
                return True
            pid = int(stats[pid][1])
        return False

    return sum(int(it[11]) + int(it[12]) for pid, it in stats.items() if belongs(pid))


def measure(fdholder, stop, style, program, overlaps):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        bind = f"web=tcp:127.0.0.1:{PORT}" + (",nonblock" if style == "nginx" else "")
        command = [fdholder, "run", "--bind", bind, "--env-style", style, "--stop-signal", stop]
        command += [] if overlaps else ["--stop-first"]
        log = open(os.path.join(folder, "log"), "w+")
        env = {**os.environ, "PYTHONPATH": folder}
        command += ["--", *program]
        run = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        said = lambda text: wait_for(log, text)
        said("is ready")
        first = int(said("(pid ").split("(pid ")[1].split(")")[0])
        answers, waiting = [], []
        assert ask(b"/")
        long = threading.Thread(target=lambda: answers.append(ask(b"/long")))
        long.start()
        time.sleep(1)
        run.send_signal(signal.SIGHUP)
        said("generation 1 is told to stop")
        time.sleep(0.5)
        before, begun = ticks(first), time.monotonic()
        while time.monotonic() < begun + MEASURED_S:
            if overlaps:
                assert ask(b"/")
            else:
                waiting.append(socket.create_connection(ADDRESS))
            time.sleep(0.05)
        share = (ticks(first) - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - begun)
        is_alive = os.path.exists(f"/proc/{first}")
        long.join()
        run.terminate()
        run.wait()
        return share, is_alive, answers


def wait_for(log, text):
    for _ in range(1000):
        with open(log.name) as file:
            for line in file:
                if text in line:
                    return line
        time.sleep(0.02)
    raise SystemExit(f"no '{text}' in: {open(log.name).read()}")


def main(fdholder, python):
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", BACKEND_PORT), Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    uvicorn = os.path.abspath("examples/python/serve_uvicorn.py")
    gunicorn = [f"{python}/gunicorn", "--no-control-socket", "--log-level", "warning", "--workers", "2"]
    servers = [
        ("nginx", "QUIT", "nginx", ["nginx", "-e", "stderr", "-p", ".", "-c", "nginx.conf"]),
        ("HAProxy `-db`", "USR1", "systemd", ["haproxy", "-db", "-f", "haproxy.cfg"]),
        ("HAProxy `-W`", "USR1", "systemd", ["haproxy", "-W", "-f", "haproxy.cfg"]),
        ("gunicorn", "TERM", "systemd", [*gunicorn, "slow:wsgi"]),
        ("uvicorn", "TERM", "systemd", [f"{python}/uvicorn", "--fd", "3", "slow:asgi"]),
        ("uvicorn, by serve_uvicorn.py", "TERM", "systemd", [f"{python}/python", uvicorn, "slow:asgi"]),
        ("Node", "TERM", "systemd", ["node", "server.js"]),
    ]
    print("| server | stopped by | processor, the next one accepts | processor, clients wait |")
    print("| --- | --- | --- | --- |")
    for name, stop, style, program in servers:
        shares = []
        for overlaps in (True, False):
            share, is_alive, answers = measure(fdholder, stop, style, program, overlaps)
            assert is_alive and answers == [True], (name, overlaps, is_alive, answers)
            shares.append(f"{share:.0%}".replace("%", " %"))
        print(f"| {name} | SIG{stop} | {shares[0]} | {shares[1]} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
