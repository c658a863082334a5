// An HTTP server on descriptor 3. It writes a newline to descriptor READY_FD once it listens. On
// SIGTERM it stops accepting, finishes its requests, and ends.
const server = require("http").createServer((request, response) => response.end("hello\n"));
const ready = () => process.env.READY_FD && require("fs").writeSync(+process.env.READY_FD, "\n");
server.listen({ fd: 3 }, ready);
process.on("SIGTERM", () => server.close());
