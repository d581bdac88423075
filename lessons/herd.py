#!/usr/bin/env python3
"""Forty clients ask the gateway at the same moment, and ask again after each 503: first exactly after the time in
Retry-After, then with jitter. The tally has for each way the calls, the refused ones, and the most calls within 100 ms,
without the first call of each client."""

import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request

CLIENTS, TRIES = 40, 5


def ask(url):
    """The seconds after which to try again, or None if the request was accepted."""
    body = json.dumps({"count": 1, "length": 64}).encode()
    request = urllib.request.Request(f"{url}/requests", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as refusal:
        if refusal.code != 503:
            raise
        return float(refusal.headers["Retry-After"])


def client(url, begin, jitter, calls):
    begin.wait()
    for attempt in range(TRIES):
        at = time.monotonic()
        wait = ask(url)
        calls.append((at, attempt, wait))
        if wait is None or attempt == TRIES - 1:
            return
        time.sleep(wait + random.uniform(0, wait) * jitter)


def herd(url, jitter):
    begin, calls = threading.Barrier(CLIENTS), []
    clients = [threading.Thread(target=client, args=(url, begin, jitter, calls)) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    again = [at for at, attempt, _ in calls if attempt > 0]
    busiest = max((sum(at <= it < at + 0.1 for it in again) for at in again), default=0)
    return {"calls": len(calls), "refused": sum(wait is not None for _, _, wait in calls), "busiest": busiest}


print(json.dumps({"exact": herd(sys.argv[1], False), "jitter": herd(sys.argv[1], True)}))
