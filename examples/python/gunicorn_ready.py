# For `fdholder run --ready-fd 4 ... -- gunicorn --config gunicorn_ready.py`: a worker has loaded the
# application.
import os


def post_worker_init(worker):
    os.write(4, b"\n")
