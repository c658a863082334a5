"""What the programs of these tests share. Each version of a service imports it."""
import array, os, select, signal, socket, sys, threading, time

folder = os.environ["FOLDER"]
generation = int(os.environ.get("FDHOLDER_GENERATION", "0"))
has_to_stop, wake = os.pipe()


def note(name, text=""):
    """Writes a file of the test, whole as soon as it is there."""
    path = os.path.join(folder, name)
    # Several services may have one folder.
    new = f"{path}.{os.getpid()}"
    with open(new, "w") as file:
        file.write(str(text))
    os.rename(new, path)


def wait_for(name):
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.002)


def notify(text, fds=()):
    """As sd_notify(3)."""
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):
        address = "\0" + address[1:]
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect(address)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sender.sendmsg([text.encode()], rights)


def barrier():
    """As sd_notify_barrier(3)."""
    reader, writer = os.pipe()
    notify("BARRIER=1", [writer])
    os.close(writer)
    assert os.read(reader, 1) == b""


def answer(connection):
    """One request, one answer: which generation has answered."""
    with connection:
        line = connection.makefile().readline().split()
        if line[:1] == ["wait"]:
            note(line[1] + ".begun")
            wait_for(line[1])
        if line:
            connection.sendall(f"{generation} {os.getpid()}\n".encode())


def stop_in_order():
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake, b"."))


def up(number=3, code=0):
    """Says that it is ready, and serves."""
    stop_in_order()
    notify("READY=1")
    serve(number, code)


def serve(number=3, code=0):
    """Serves until SIGTERM, then answers what is under way."""
    stop_in_order()
    listener = socket.socket(fileno=number)
    listener.setblocking(False)
    threads = []
    note(f"serving.{generation}", os.getpid())
    while has_to_stop not in select.select([listener, has_to_stop], [], [])[0]:
        try:
            connection = listener.accept()[0]
        except BlockingIOError:
            continue
        connection.setblocking(True)
        thread = threading.Thread(target=answer, args=[connection])
        thread.start()
        threads.append(thread)
    listener.close()
    print("last words", file=sys.stderr, flush=True)
    note(f"closed.{generation}")
    for thread in threads:
        thread.join()
    note(f"stopped.{generation}")
    sys.exit(code)
