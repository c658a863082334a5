"""uvicorn on descriptor 3, as `uvicorn --fd 3 APP` is; but it sends nobody away.

When uvicorn is told to stop, it closes what has not asked for anything yet, also what it has
just accepted. This one first stops accepting, and then waits until each of them has asked.
"""

import asyncio
import sys

import uvicorn

# Whoever is silent for so long is not waited for.
PATIENCE_S = 5


class Server(uvicorn.Server):
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
