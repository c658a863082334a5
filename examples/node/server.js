// An HTTP server on the socket that is passed to it as descriptor 3. On SIGTERM it stops
// accepting, answers those that it has accepted, and ends.
const server = require("http").createServer((request, response) => response.end("hello\n"));
server.listen({ fd: 3 });
process.on("SIGTERM", () => server.close());
