"""The same answer to everything, for WSGI servers (gunicorn) and ASGI servers (uvicorn)."""

ANSWER = b"hello\n"


def wsgi(environ, start_response):
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(ANSWER)))]
    start_response("200 OK", headers)
    return [ANSWER]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})
