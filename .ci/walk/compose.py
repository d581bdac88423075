"""Builds the images, starts the Compose file, stops, kills, scales and replaces each part of it under load,
and asks for the verdict. `compose` beside this file calls it."""

import json
import os
import subprocess

from lessons import lessons
from steps import ask, ask_and_follow, eventually, expect, follow, run, step

# Separate from everything else on this engine: containers, network and volume have names of their own, and the pages have
# free ports.
ENVIRONMENT = os.environ | {"COMPOSE_PROJECT_NAME": f"decoupled-walk-{os.getpid()}"}
ENVIRONMENT |= {"REQUEST_RATE": "100", "HEALTH_INTERVAL": "2s"}
ENVIRONMENT |= dict.fromkeys(("GATEWAY_PORT", "WORD_COUNT_PORT", "ORDERS_PORT"), "0")
# Each example has a profile of its own, and a broker.
EXAMPLES = "word-count", "orders"
# What the first program of each logs once it runs. That of orders waits for its database.
SIGNS = {"word-count": "word-count listens", "orders": "waiting for the database"}


def main():
    step("build the images")
    compose("build")
    try:
        walk()
    except BaseException:
        compose("logs", "--tail", "40", check=False)
        raise
    finally:
        # With the profiles, whose volumes would stay otherwise.
        profiles = (f"--profile={name}" for name in ("tools", *EXAMPLES))
        compose(*profiles, "down", "--volumes", "--timeout", "5", "--remove-orphans", check=False)
        # They are not those of a release.
        docker("image", "rm", "--force", *(f"decoupled/{example}:0.2.0" for example in EXAMPLES), check=False)


def walk():
    step("build and start each example without its database: its programs are tried elsewhere")
    for example in EXAMPLES:
        # What they print is the same in this profile, which takes less time to build.
        compose(f"--profile={example}", "build", "--build-arg", "PROFILE=dev", example)
        broker = f"{example}-nats"
        compose("up", "--detach", "--no-deps", broker, example)
        [container], [program] = containers(broker), containers(example)
        check_container("nats", inspect(container))
        check_container(example, inspect(program), labels=())
        eventually(f"{broker} listens", lambda: "Server is ready" in docker("logs", container).stderr)
        eventually(f"{example} starts", lambda: SIGNS[example] in docker("logs", program).stderr)
        compose("rm", "--stop", "--force", broker, example)

    step("start, and look at how it runs")
    compose("up", "--detach", "--wait")
    for service in ("nats", "declare", "requestor", "generator", "gateway"):
        for container in containers(service):
            check_container(service, inspect(container))
    eventually("requests are received", lambda: complete() >= 100)

    step("ask for strings through the gateway, and follow the request until it is received")
    ask_and_follow(gateway())

    step("stop the generators: requests wait, and the requestor goes on")
    compose("stop", "generator")
    for container in containers("generator", running=False):
        expect(inspect(container)["State"]["ExitCode"] == 0, "a stopped generator ends with 0")
    before = verdict()["pending"]
    eventually("requests wait", lambda: verdict()["pending"] >= before + 300)
    expect(healthy("requestor") == 1, "the requestor is ready without a generator")

    step("start them: the queue drains")
    compose("start", "generator")
    eventually("the queue drains", lambda: verdict()["pending"] < 200)

    step("stop the requestor, ask without it, and start it")
    compose("stop", "requestor")
    expect(healthy("generator") == 2, "the generators are ready without a requestor")
    requested = verdict()["requested"]
    asked = ask(gateway())
    expect(verdict()["requested"] == requested + 1, "the gateway asks without a requestor")
    compose("start", "requestor")
    follow(gateway(), asked)
    eventually("the requestor asks again", lambda: verdict()["requested"] > requested + 1)

    step("scale to five, and kill two of them")
    others = containers("nats") + containers("requestor")
    compose("up", "--detach", "--wait", "--scale", "generator=5")
    generators = containers("generator")
    expect(len(generators) == 5, "five generators run")
    expect(containers("nats") + containers("requestor") == others, "nothing else was touched")
    docker("kill", "--signal", "KILL", *generators[:2])

    step("replace each service under load by a new version, and leave the other alone")
    for service, other in (("generator", "requestor"), ("requestor", "generator")):
        old, others = set(containers(service, running=False)), containers(other) + containers("nats")
        ENVIRONMENT["REVISION"] = f"another-{service}"
        compose("up", "--detach", "--build", service)
        expect(old.isdisjoint(containers(service)), f"every {service} is a new one")
        labels = inspect(containers(service)[0])["Config"]["Labels"]
        expect(labels["org.opencontainers.image.revision"] == f"another-{service}", "it is the new version")
        expect(containers(other) + containers("nats") == others, "nothing else was touched")
    eventually("new ones are ready", lambda: healthy("generator") == 2 and healthy("requestor") == 1)

    step("kill the broker, and start it")
    docker("kill", "--signal", "KILL", *containers("nats"))
    eventually("the services notice", lambda: healthy("generator") == 0 and healthy("requestor") == 0)
    # It was stopped by hand, so the engine does not start it again by itself.
    compose("up", "--detach", "--wait", "nats")
    eventually("they are ready again", lambda: healthy("generator") == 2 and healthy("requestor") == 1)

    step("ask for no more, and for the verdict")
    ENVIRONMENT["REQUEST_RATE"] = "0"
    compose("up", "--detach", "--wait", "--no-deps", "requestor")
    said = compose("run", "--rm", "cli", "audit", "--wait", "120s").stdout
    print(said)
    expect("Nothing lost, nothing doubled." in said, "the audit ends with its verdict")
    final = lasting_verdict()
    expect(final["requested"] == final["complete"] > 1000, "each accepted request is complete")

    step("back up, lose the broker's volume, and restore")
    compose("stop", "requestor", "generator", "gateway", "declare")
    compose("run", "--rm", "backup", "backup", "/backups/now")
    compose("rm", "--stop", "--force", "nats")
    docker("volume", "rm", f"{ENVIRONMENT['COMPOSE_PROJECT_NAME']}_queues")
    compose("up", "--detach", "--wait", "nats")
    compose("run", "--rm", "backup", "restore", "/backups/now")
    restored = lasting_verdict()
    expect(restored == final, f"the verdict is the same as before:\n{final}\n{restored}")

    step("start all of it again, for the lessons")
    compose("up", "--detach", "--wait")
    # The last one replaces the store, so there is no verdict after them.
    lessons(gateway, {name: value for name, value in ENVIRONMENT.items() if name != "REQUEST_RATE"})


LABELS = "title", "description", "version", "licenses", "source", "revision"


def check_container(service, container, labels=LABELS):
    """The properties of each container that docs/security.md lists."""
    config, host = container["Config"], container["HostConfig"]
    name = container["Name"].strip("/")
    expect(host["ReadonlyRootfs"], f"the root of {name} is read-only")
    expect(host["CapDrop"] == ["ALL"], f"{name} has no capabilities")
    expect("no-new-privileges:true" in host["SecurityOpt"], f"{name} gains no privileges")
    for published in container["NetworkSettings"]["Ports"].values():
        for port in published or []:
            expect(port["HostIp"] == "127.0.0.1", f"{name} is published on this machine alone")
    expect(service != "nats" or not any(container["NetworkSettings"]["Ports"].values()), "the broker is not published")
    if service != "nats":
        expect(config["User"] == "65532:65532", f"{name} runs as nobody")
        for label in labels:
            expect(config["Labels"].get(f"org.opencontainers.image.{label}"), f"the image of {name} has a {label}")


def gateway():
    """The address of the gateway, the one port that is published."""
    [published] = next(ports for ports in inspect(containers("gateway")[0])["NetworkSettings"]["Ports"].values() if ports)
    return f"http://{published['HostIp']}:{published['HostPort']}"


def verdict():
    """The current verdict. Under load messages move while it is read. A lost or doubled request is an error at once."""
    done = compose("run", "--rm", "cli", "audit", "--json", check=False)
    expect(done.returncode == 0, f"nothing is lost or doubled: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def lasting_verdict():
    """The current verdict without the redeliveries: a broker that was killed has forgotten some, and may forget the others
    in a restore."""
    return {name: value for name, value in verdict().items() if name != "redelivered"}


def complete():
    return verdict()["complete"]


def containers(service, running=True):
    return compose("ps", "--quiet", *([] if running else ["--all"]), service).stdout.split()


def inspect(container):
    return json.loads(docker("inspect", container).stdout)[0]


def healthy(service):
    """The number of healthy containers of a service."""
    return sum(inspect(container)["State"]["Health"]["Status"] == "healthy" for container in containers(service))


def compose(*words, check=True):
    return docker("compose", *words, check=check)


def docker(*words, check=True):
    shown = words[0] in ("compose", "kill") and not {"ps", "run"} & set(words)
    if shown:
        print("$ docker", *words, flush=True)
    done = run(["docker", *words], check, env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    if not check and "logs" in words:
        print(done.stdout)
    return done


if __name__ == "__main__":
    main()
