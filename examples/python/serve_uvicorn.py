"""uvicorn on descriptor 3, as `uvicorn --fd 3 APP` is, but it drops no client.

When uvicorn stops, it closes connections that have not asked for anything yet, also those that it
has just accepted. This one stops accepting first, and then waits until each of them has asked. It
sends READY=1 to NOTIFY_SOCKET when the application has started.
"""

import asyncio
import os
import socket
import sys

import uvicorn

# A client that is silent for so long is not waited for.
PATIENCE_S = 5


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        if self.started and "NOTIFY_SOCKET" in os.environ:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])

    async def shutdown(self, sockets=None):
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listener in server.sockets:
                # Not close(): asyncio would drop what it has accepted in this very moment.
                loop.remove_reader(listener.fileno())
        end = loop.time() + PATIENCE_S
        # What has been accepted becomes a connection a little later.
        await asyncio.sleep(0.05)
        while loop.time() < end and any(it.cycle is None for it in self.server_state.connections):
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


if __name__ == "__main__":
    # uvicorn's own loop: others do not let go of a listener by remove_reader.
    config = uvicorn.Config(sys.argv[1], fd=3, loop="asyncio", log_level="warning", access_log=False)
    Server(config).run()
