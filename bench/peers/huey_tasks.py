"""huey, a task queue: `huey_tasks.py COUNT` submits tasks and waits until a consumer has run them.

Each task runs `bash -c true` and then adds a byte to a file, whose size says how many are done.
"""

import json
import os
import subprocess
import sys
import time

import huey as library

DONE = "done"


def open_queue():
    storage = os.environ["HUEY_STORAGE"]
    if storage == "sqlite":
        return library.SqliteHuey("bench", filename="huey.db", results=False)
    if storage == "file":
        return library.FileHuey("bench", path="queue", results=False)
    socket = os.environ["HUEY_REDIS_SOCKET"]
    return library.RedisHuey("bench", url="unix://" + os.path.abspath(socket), results=False)


huey = open_queue()


@huey.task()
def nothing():
    subprocess.run(["bash", "-c", "true"], check=True)
    descriptor = os.open(DONE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b".")
    os.close(descriptor)


def wait_until_done(count):
    deadline = time.monotonic() + 600
    while not (os.path.exists(DONE) and os.path.getsize(DONE) >= count):
        if time.monotonic() > deadline:
            sys.exit("huey has not run all tasks within ten minutes")
        time.sleep(0.005)


def main():
    count = int(sys.argv[1])
    # The consumer is ready when it has run one.
    nothing()
    wait_until_done(1)
    started = time.monotonic()
    for _ in range(count):
        nothing()
    wait_until_done(count + 1)
    print(json.dumps({"seconds": time.monotonic() - started}))


if __name__ == "__main__":
    # Under the name by which the consumer knows the task.
    import huey_tasks

    huey_tasks.main()
