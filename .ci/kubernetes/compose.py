"""Holds the Compose file, and the Dockerfile that it builds from, against the programs and the broker."""

import re

import yaml

import agreement
import broker
import pods
from network import addresses
from refusal import expect, within
from render import REPOSITORY

# Who a container is in every image: nobody. The pods say the same.
NOBODY = 65532
# The members of the workspace that have an image.
PROGRAMS = ["requestor", "generator", "gateway", "cli"]


def check(root):
    """Checks both, and says how many services there are."""
    text = (root / "docker-compose.yml").read_text()
    # What nobody has set is what stands behind the `:-`.
    services = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))["services"]
    dockerfile = (root / "Dockerfile").read_text()
    with within("Dockerfile"):
        check_dockerfile(dockerfile)
    with within("docker-compose.yml, nats"):
        conf = check_broker(services["nats"], root)
    for name, service in services.items():
        with within(f"docker-compose.yml, {name}"):
            check_service(name, service, dockerfile, conf)
            check_addresses(service, services, conf)
    for service in services.values():
        environment = service.get("environment", {})
        for name in environment:
            if name.endswith("_USER"):
                password = environment[name.removesuffix("USER") + "PASSWORD"]
                known = services["nats"]["environment"].get(f"{environment[name].upper()}_PASSWORD")
                expect(f"'{password}'" == known, f"the password of {environment[name]} is not the broker's")
    for side, other in (("requestor", "generator"), ("generator", "requestor")):
        expect(other not in reachable(services, side), f"{side} depends on {other}")
    return len(services)


def check_broker(service, root):
    """The broker with the files that it mounts; returns its configuration."""
    mounts, lasting = {}, []
    for volume in service["volumes"]:
        source, path, *_ = volume.split(":")
        if source.startswith("."):
            directory, name = path.rsplit("/", 1)
            expect((root / source).is_file(), f"mounts {source}, which is not there")
            mounts.setdefault(directory, {})[name] = (root / source).read_text()
        else:
            mounts[path] = None
            lasting.append(path)
    broker.start(service["command"], mounts, lasting, service["environment"])
    conf = pods.configuration_of(mounts)
    broker.check_environment(conf, service["environment"])
    return conf


def check_service(name, service, dockerfile, conf):
    expect("container_name" not in service, "has a name that keeps it from being scaled")
    expect(service.get("read_only") and service.get("cap_drop") == ["ALL"], "is not restricted")
    # What somebody runs by hand is not started again.
    restart = "no" if "profiles" in service else "unless-stopped"
    expect(service.get("restart", "no") == restart, f"is not restarted {restart}")
    for published in service.get("ports", []):
        expect(str(published).startswith("127.0.0.1:"), f"publishes {published} beyond this machine")
    ours = agreement.OURS.fullmatch(service["image"])
    if "build" in service:
        expect(service["build"]["target"] == ours[1], "is built from another target than its image says")
    if not ours:
        agreement.check_broker_image(service["image"])
        return
    environment = {variable: str(value) for variable, value in service["environment"].items()}
    program = agreement.NAMES.get(ours[1], ours[1])
    entrypoint = service.get("entrypoint", [f"/usr/local/bin/{program}"])
    expect(f'ENTRYPOINT ["{entrypoint[0]}"]' in dockerfile, f"{entrypoint[0]} is not in the image")
    args = entrypoint[1:] + service.get("command", [])
    # What somebody adds to `docker compose run`.
    args += {"cli": ["audit"], "dead-letters": ["list"], "keeper": ["backup"]}.get(name, [])
    if ours[1] != "cli":
        # Its image says it.
        environment["ADMIN_ADDR"] = re.search(r"^ENV ADMIN_ADDR=(\S+)$", dockerfile, re.MULTILINE)[1]
    if "profiles" not in service:
        expected = ["CMD", entrypoint[0], "healthcheck"]
        asked = service.get("healthcheck", {}).get("test")
        expect(asked == expected, f"its health is not asked by {expected}")
    ports = listens(service)
    container = {
        "image": service["image"],
        "args": args,
        "env": [{"name": variable, "value": value} for variable, value in environment.items()],
        "ports": [{"name": str(port), "containerPort": port} for port in ports],
    }
    grace = agreement.seconds(service.get("stop_grace_period", "10s"))
    agreement.check_container(container, grace, conf, brokers=1)
    for published in service.get("ports", []):
        port = int(str(published).rsplit(":", 1)[1])
        expect(port in ports, f"publishes {published}, where nothing listens")


def listens(service):
    environment = service.get("environment", {})
    return {int(str(value).rsplit(":", 1)[1]) for name, value in environment.items() if name.endswith("_ADDR")}


def check_addresses(service, services, conf):
    """Whatever a service is told to speak to is another, and listens there."""
    environment = {name: str(value) for name, value in service.get("environment", {}).items()}
    container = {"env": [{"name": name, "value": value} for name, value in environment.items()]}
    for name, host, port in addresses(container):
        expect(host in services, f"{name} names {host}, which is no service")
        ports = broker.listens(conf) if host == "nats" else listens(services[host])
        expect(port in ports, f"{name} names port {port}, where {host} does not listen")


def reachable(services, name):
    """The services that one depends on, and those that they depend on."""
    found = set()
    for other in services[name].get("depends_on", {}):
        found |= {other} | reachable(services, other)
    return found


def check_dockerfile(dockerfile):
    label = re.search(r'org\.opencontainers\.image\.version="(.+?)"', dockerfile)[1]
    version = agreement.version()
    expect(label == version, f"the images say that they are {label}, and the programs are {version}")
    manifest = (REPOSITORY / "Cargo.toml").read_text()
    rust = re.search(r'^rust-version = "(.+)"$', manifest, re.MULTILINE)[1]
    expect(f"FROM rust:{rust}-" in dockerfile, f"the images are not built with Rust {rust}")
    stages = stages_of(dockerfile)
    for member in PROGRAMS:
        expect(member in stages, f"has no target {member}")
        user = user_of(member, stages)
        expect(user == f"{NOBODY}:{NOBODY}", f"{member} runs as {user}, and not as {NOBODY}:{NOBODY}")
        copied, needed = copied_by(f"{member}-build", stages), built_from(member, manifest)
        expect(copied == needed, f"{member} is built from {sorted(needed)}, and its image from {sorted(copied)}")


def stages_of(dockerfile):
    """Each stage by its name: what it is made from, and what it does."""
    found = re.findall(r"^FROM (\S+) AS (\S+)\n((?:(?!FROM ).*\n?)*)", dockerfile, re.MULTILINE)
    return {name: (base, text) for base, name, text in found}


def copied_by(stage, stages):
    """The directories of sources that a stage copies: here, or where it is made from."""
    found = set()
    while stage in stages:
        stage, text = stages[stage]
        found |= set(re.findall(r"^COPY ([\w/]+) \1$", text, re.MULTILINE))
    return found


def built_from(directory, manifest):
    """The directory of a member of the workspace, and those of all that it depends on."""
    text = (REPOSITORY / directory / "Cargo.toml").read_text()
    dependencies = re.search(r"^\[dependencies\]\n((?:[^\[\n].*\n|\n)*)", text, re.MULTILINE)[1]
    members = dict(re.findall(r'^([\w-]+) = \{ path = "(.+?)"', manifest, re.MULTILINE))
    named = re.findall(r"^([\w-]+)(?:\.workspace)? *=", dependencies, re.MULTILINE)
    return {directory}.union(*(built_from(members[name], manifest) for name in named if name in members))


def user_of(stage, stages):
    """Who a stage runs as, if the Dockerfile says so: here, or where it is made from."""
    while stage in stages:
        stage, text = stages[stage]
        if users := re.findall(r"^USER (\S+)$", text, re.MULTILINE):
            return users[-1]
    return None
