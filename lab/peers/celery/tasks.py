"""The round trip of requests, responses and acknowledgments on Celery with Redis.

Two workers, `-Q requests,acknowledgments` and `-Q responses`; `python -m tasks NUMBER` asks for that many strings.
"""

import os
import random
import signal
import string
import sys
import time
import uuid

import redis
from celery import Celery
from celery.signals import worker_ready

URL = os.environ["REDIS_URL"]

app = Celery("tasks", broker=URL)
app.conf.update(
    task_ignore_result=True,
    # The task of a killed worker is done again, and not lost.
    task_acks_late=True,
    # After 30 s, as with the ACK_WAIT of the requestor and the generator, and not an hour; a worker looks for such
    # tasks every 10 s, and not every 100 s.
    broker_transport_options={"visibility_timeout": 30, "unacked_restore_throttle": 1},
    # For many short tasks.
    worker_prefetch_multiplier=64,
    task_routes={
        "tasks.make": {"queue": "requests"},
        "tasks.store": {"queue": "responses"},
        "tasks.mark": {"queue": "acknowledgments"},
    },
)
database = redis.Redis.from_url(URL)


@app.task
def make(id, length):
    store.delay(id, "".join(random.choices(string.ascii_letters + string.digits, k=length)))


@app.task
def store(id, value):
    database.hset("strings", id, value)
    mark.delay(id)


@app.task
def mark(id):
    if not database.sadd("marks", id):
        database.incr("doubled")


@worker_ready.connect
def tell(**_):
    print("listening", flush=True)


if __name__ == "__main__":
    # The tasks of the workers' module, and not those of this program.
    from tasks import make

    database.set("began", time.time_ns() // 1_000_000)
    for _ in range(int(sys.argv[1])):
        make.delay(str(uuid.uuid4()), 16)
    # Its processor time is read at the end.
    signal.pause()
