"""Tells each client which process has served it. Descriptor 3 is its listening socket."""

import os
import socket

listener = socket.socket(fileno=3)
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d\n" % os.getpid())
