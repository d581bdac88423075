"""Does the steps of the course with Compose, and waits for the same checks as its page."""

import json
import subprocess
import time
import urllib.request

from steps import LIMIT, answer, eventually, expect, run, step

# The address of the gateway in the commands of the lessons.
USUAL = "http://127.0.0.1:8080"


def lessons(gateway, environment):
    """Does each lesson that can be done with Compose. `gateway` returns the address of the gateway."""
    for listed in answer(f"{gateway()}/api/lessons")["lessons"]:
        lesson = answer(f"{gateway()}/api/lessons/{listed['number']}")
        sections = {section["title"]: section for section in lesson["sections"]}
        scene = sections["Set the scene"]["commands"].get("compose")
        if scene is None:
            continue
        step(f"lesson {lesson['number']}: {lesson['title']}")
        do(scene, gateway, environment)
        eventually("both services are ready", lambda: both_run(gateway()))
        for number, one in enumerate(sections["Do"]["steps"], 1):
            if command := one["commands"].get("compose"):
                follow(f"lessons/{lesson['number']}/steps/{number}", one, command, gateway, environment)


def follow(path, one, command, gateway, environment):
    if one["check"] is None or one["lab_only"]:
        do(command, gateway, environment)
        return
    with urllib.request.urlopen(f"{gateway()}/api/{path}", timeout=LIMIT) as events:
        # The gateway has the state before the step now.
        name, data = next_event(events)
        expect(name == "state", f"the check of {path} is not true before anything is done: {data}")
        do(command, gateway, environment)
        end = time.monotonic() + LIMIT
        while name != "done":
            expect(time.monotonic() < end, f"the check of {path} becomes true: {data}")
            name, data = next_event(events)
    print(f"  {path}: {data['saw']}", flush=True)


def next_event(events):
    """The name and the data of an event. Each arrives within a second, or the gateway has gone."""
    lines = []
    for line in events:
        if line == b"\n":
            fields = dict(line.decode().rstrip().split(": ", 1) for line in lines)
            return fields["event"], json.loads(fields["data"])
        lines.append(line)
    raise SystemExit(f"the gateway sends no more events after {lines}")


def do(command, gateway, environment):
    run(["sh", "-e", "-c", command.replace(USUAL, gateway())], env=environment, stdin=subprocess.DEVNULL)


def both_run(gateway):
    [*_, now] = answer(f"{gateway}/api/history")
    return now["requestors"] > 0 and now["generators"] > 0
