"""The common parts of the walks. Nothing here waits for a fixed time."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

# A time limit in seconds that only a bug reaches, even on a slow machine.
LIMIT = 300


def step(what):
    print(f"- {what}", flush=True)


def expect(holds, what):
    if not holds:
        sys.exit(f"does not hold: {what}")


def eventually(what, holds):
    end = time.monotonic() + LIMIT
    while not (held := holds()):
        if time.monotonic() > end:
            sys.exit(f"does not come about: {what}")
        time.sleep(0.2)
    return held


def run(words, check=True, **how):
    """Runs a program to its end, and returns its output. By default it has to succeed."""
    done = subprocess.run(words, capture_output=True, text=True, **how)
    if check and done.returncode != 0:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def ask_and_follow(gateway):
    """Submits a request through the gateway at this address, and waits until it is complete."""
    follow(gateway, ask(gateway))


def ask(gateway):
    """Submits a request, and returns its id."""
    # Without an answer the outcome is unknown. Under the same key the request is submitted only once.
    key = {"Idempotency-Key": uuid.uuid4().hex}
    asked = {"count": 1, "length": 16}
    return eventually("a string is asked for", lambda: answer(f"{gateway}/requests", asked, key))["id"]


def follow(gateway, asked):
    def is_received():
        return (answer(f"{gateway}/requests/{asked}") or {}).get("status") == "received"

    eventually("the request is received", is_received)


def answer(url, body=None, headers=None):
    """The answer as JSON. Sends a POST if there is a body. None if the gateway does not reach the broker."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=LIMIT) as answered:
            return json.load(answered)
    except urllib.error.HTTPError as refused:
        if refused.code in (502, 503):
            return None
        sys.exit(f"{url} answers with {refused}: {refused.read().decode()}")
