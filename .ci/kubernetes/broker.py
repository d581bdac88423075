"""Lets a broker read its own configuration, started as its container starts it, and asks it what it has read."""

import base64
import functools
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

from objects import containers, environment_of, of_kind, title
from pods import PATH, configuration_of, mounts_of
from refusal import Refused, expect, within

# What may be in its environment besides what its configuration names.
ELSEWHERE = {"GOMEMLIMIT"}
# How long it may take to start, in seconds. It takes a tenth of one.
PATIENCE = 60


def check(objects):
    for broker in of_kind(objects, "StatefulSet"):
        with within(title(broker)):
            check_configuration(broker, objects)


def check_configuration(broker, objects):
    varz = read(broker, objects)
    [container] = [each for each in containers(broker) if each["name"] == "nats"]
    text = configuration_of(mounts_of(container, broker, objects))
    check_environment(text, environment_of(container))
    ports = {port["containerPort"] for port in container["ports"]}
    expect(listens(text) == ports, f"it listens on {sorted(listens(text))}, and is said to on {sorted(ports)}")
    replicas = broker["spec"]["replicas"]
    known = varz["cluster"].get("urls", [])
    expected = [f"{broker['metadata']['name']}-{n}.{broker['spec']['serviceName']}:6222" for n in range(replicas)]
    expect(known == (expected if replicas > 1 else []), f"it looks for {known}, and there are {replicas} of it")
    if varz.get("tls_required") and replicas > 1:
        verified = varz["cluster"].get("tls_required") and varz["cluster"].get("tls_verify")
        expect(verified, "it asks clients for TLS, and other brokers for no certificate")


def check_environment(text, environment):
    """What the configuration takes from the environment is there, and nothing else is."""
    plain = re.sub(r'"[^"]*"', "", text)
    needed = set(re.findall(r"(?<!\w)\$([A-Z][A-Z0-9_]+)\b(?!\.)", plain))
    needed |= {name for value in environment.values() for name in re.findall(r"\$\((\w+)\)", value or "")}
    given = environment.keys() - ELSEWHERE
    expect(given == needed, f"the broker is given {sorted(given)}, and needs {sorted(needed)}")


def listens(text):
    return {int(port) for port in re.findall(r"^\s*(?:listen|http): 0\.0\.0\.0:(\d+)$", text, re.MULTILINE)}


def has_tls(objects):
    """Whether clients have to speak TLS."""
    return any(read(broker, objects).get("tls_required", False) for broker in of_kind(objects, "StatefulSet"))


def read(broker, objects):
    """What the first broker of these says of itself."""
    [container] = [each for each in containers(broker) if each["name"] == "nats"]
    secrets = {thing["metadata"]["name"]: thing["data"] for thing in of_kind(objects, "Secret")}
    environment = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            reference = source["secretKeyRef"]
            value = base64.b64decode(secrets[reference["name"]][reference["key"]]).decode()
        elif "fieldRef" in source:
            value = f"{broker['metadata']['name']}-0"
        else:
            value = re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], variable["value"])
        environment[variable["name"]] = value
    lasting = {claim["metadata"]["name"] for claim in broker["spec"].get("volumeClaimTemplates", [])}
    lasting = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in lasting]
    return start(container["command"], mounts_of(container, broker, objects), lasting, environment)


def start(command, mounts, lasting, environment):
    """What a broker says of itself. Several have the same configuration: it is started once for all of them."""
    return json.loads(start_once(json.dumps([command, mounts, lasting, environment], sort_keys=True)))


@functools.cache
def start_once(given):
    command, mounts, lasting, environment = json.loads(given)
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        for path, files in mounts.items():
            (home / path[1:]).mkdir(parents=True, exist_ok=True)
            for name, text in (files or {}).items():
                (home / path[1:] / name).write_text(moved(text, mounts, home))
            if files and "tls.crt" in files:
                for name, own in certificate().items():
                    if name in files:
                        (home / path[1:] / name).write_text(own)
        program, *arguments = [moved(word, mounts, home) for word in command]
        expect(program == "nats-server", f"the broker is started as {program}")
        program = shutil.which(program)
        tested = subprocess.run([program, *arguments, "-t"], env=environment, capture_output=True, text=True)
        expect(tested.returncode == 0, f"the broker refuses its configuration: {tested.stderr.strip()}")
        varz = ask([program, *arguments, "--ports_file_dir", home], environment, home)
    config = varz.get("jetstream", {}).get("config", {})
    expect(config.get("sync_always"), "the broker confirms what is not on the disk: sync_interval is not always")
    store = "/" + str(pathlib.Path(config["store_dir"]).relative_to(home))
    expect(any(store.startswith(path + "/") for path in lasting), f"the broker stores in {store}, which does not last")
    return json.dumps(varz)


def moved(text, mounts, home):
    """A text with its paths below another directory, and with whatever port is free on this machine alone."""

    def below(found):
        inside = any(found[0] == mount or found[0].startswith(mount + "/") for mount in mounts)
        expect(inside, f"the broker's configuration names {found[0]}, which is in none of its volumes")
        return f"{home}{found[0]}"

    # Comments go, but not their lines, which the broker counts when it refuses one.
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\b0\.0\.0\.0:\d+", "127.0.0.1:-1", PATH.sub(below, text))


def ask(command, environment, home):
    with open(home / "log", "w+") as log, subprocess.Popen(command, env=environment, stderr=log) as broker:
        try:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline and broker.poll() is None:
                # The file is there before it is complete.
                for ports in home.glob("*.ports"):
                    if (text := ports.read_text()).endswith("}"):
                        [monitor, *_] = json.loads(text)["monitoring"]
                        return json.load(urllib.request.urlopen(f"{monitor}/varz", timeout=PATIENCE))
                time.sleep(0.01)
            log.seek(0)
            raise Refused(f"the broker does not start: {log.read().strip()}")
        finally:
            broker.kill()


@functools.cache
def certificate():
    """A certificate that has signed itself: files by their names in the Secret."""
    with tempfile.TemporaryDirectory() as home:
        home = pathlib.Path(home)
        made = subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", "/CN=nats", "-days", "1", "-keyout", home / "key", "-out", home / "crt",
            ],
            capture_output=True,
            text=True,
        )
        expect(made.returncode == 0, f"openssl makes no certificate: {made.stderr}")
        key, crt = (home / "key").read_text(), (home / "crt").read_text()
    return {"tls.key": key, "tls.crt": crt, "ca.crt": crt}
