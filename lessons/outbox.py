#!/usr/bin/env python3
"""Places an order while the broker of the running lab is away, kills the order service, and starts everything again.
The argument says how the service publishes the event of an order: after-commit, before-commit or outbox. The tally is
the verdict of orders-audit: the number of complete and of lost orders."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request


def lab(*words):
    return ["cargo", "lab", *words]


def main(publish, directory):
    orders, payments = (f"sqlite:{directory / name}" for name in ("orders.db", "payments.db"))
    environment = os.environ | {
        "DATABASE_URL": orders,
        "PAYMENTS_DATABASE_URL": payments,
        "PUBLISH": publish,
        "LISTEN_ADDR": "127.0.0.1:0",
        "ADMIN_ADDR": "127.0.0.1:0",
    }
    programs = []

    def start(program, **settings):
        log = directory / f"{len(programs)}.log"
        with log.open("w") as file:
            command = lab("exec", program)
            programs.append(subprocess.Popen(command, env=environment | settings, stdout=file, stderr=file))
        return programs[-1], log

    def audit():
        ran = subprocess.run(lab("exec", "orders-audit"), env=environment, stdout=subprocess.PIPE, text=True)
        if ran.returncode and not ran.stdout:
            sys.exit("the audit has no verdict")
        lines = re.findall(r"^(\w+) +(\d+)$", ran.stdout, re.MULTILINE)
        return {"complete": 0, "lost": 0} | {fate.lower(): int(count) for fate, count in lines}

    try:
        service, log = start("orders")
        said(r"\bready\b", service, log)
        address = said(r"HTTP listens.*addr\W+([\d.:]+)", service, log)[1]
        subprocess.run(lab("kill", "broker"), check=True, stdout=subprocess.DEVNULL)
        print("The broker is away. POST /orders:", place(f"http://{address}/orders"))
        service.kill()
        print("The order service is killed.")
        subprocess.run(lab("start", "broker"), check=True, stdout=subprocess.DEVNULL)
        for started in (start("orders"), start("orders-relay"), start("payments", DATABASE_URL=payments)):
            said(r"\bready\b", *started)
        print("Everything runs again.")
        while (verdict := audit()).get("pending"):
            time.sleep(1)
        print(json.dumps(verdict))
    finally:
        # It does nothing if the broker runs.
        subprocess.run(lab("start", "broker"), stdout=subprocess.DEVNULL)
        for program in programs:
            program.kill()
            program.wait()


def said(pattern, program, log):
    """The first match in the log of this program, once it is there."""
    while not (found := re.search(pattern, log.read_text())):
        if program.poll() is not None:
            sys.exit(log.read_text())
        time.sleep(0.1)
    return found


def place(url):
    """The answer to an order, if it comes within three seconds."""
    body = json.dumps({"item": "a lamp", "amount": 3000}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=3) as response:
            return f"{response.status}, {json.load(response)['status']}"
    except socket.timeout:
        return "no answer"


with tempfile.TemporaryDirectory() as directory:
    main(sys.argv[1], pathlib.Path(directory))
