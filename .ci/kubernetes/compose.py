"""Holds the Compose file, and the Dockerfile that it builds from, against the programs and the broker."""

import re

import yaml

import programs
from objects import expect, within


def check(root):
    text = (root / "docker-compose.yml").read_text()
    # What nobody has set is what stands behind the `:-`.
    services = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))["services"]
    dockerfile = (root / "Dockerfile").read_text()
    nats = services["nats"]
    with within("docker-compose.yml, nats"):
        check_restart(nats)
        programs.check_broker_image(nats["image"])
        mounts = dict(volume.split(":")[1::-1] for volume in nats["volumes"])
        conf = programs.read({"nats.conf": (root / mounts["/etc/nats/nats.conf"]).read_text()}, nats["command"], nats["environment"])
        [store] = re.findall(r"store_dir: (\S+)", conf)
        expect(store in mounts, f"stores in {store}, which is none of its volumes")
    listens = set(re.findall(r"^\s*listen: 0\.0\.0\.0:(\d+)$", conf, re.M))
    users = programs.users_of(conf, nats["environment"])
    for name, service in services.items():
        if name != "nats":
            with within(f"docker-compose.yml, {name}"):
                check_restart(service)
                check_service(name, service, dockerfile, users)
                url = service["environment"]["NATS_URL"]
                expect(url in {f"nats://nats:{port}" for port in listens}, f"{url} is not where the broker listens")
    expect(f'org.opencontainers.image.version="{programs.version()}"' in dockerfile, "the images say another version")


def check_restart(service):
    expect("container_name" not in service and "depends_on" not in service, "has a name of its own, or depends on another")
    expect(service.get("read_only") and service.get("cap_drop") == ["ALL"], "is not restricted")
    # What somebody runs by hand is not started again.
    restart = "no" if "profiles" in service else "unless-stopped"
    expect(service.get("restart", "no") == restart, f"is not restarted {restart}")


def check_service(name, service, dockerfile, users):
    image = programs.OURS.fullmatch(service["image"])[1]
    expect(service.get("build", {}).get("target", image) == image, "is built from another target than its image says")
    program = f"/usr/local/bin/{'decoupled' if image == 'cli' else image}"
    expect(f'ENTRYPOINT ["{program}"]' in dockerfile, f"{program} is not in the image")
    told = {variable: str(value) for variable, value in service["environment"].items()}
    env = [{"name": variable} for variable in told]
    if image != "cli":
        # Its image says it.
        told["ADMIN_ADDR"] = re.search(r"^ENV ADMIN_ADDR=(\S+)$", dockerfile, re.M)[1]
    # What somebody adds to `docker compose run`.
    added = {"cli": ["audit"], "dead-letters": ["list"], "backup": ["backup"]}.get(name, [])
    args = service.get("entrypoint", [])[1:] + service.get("command", []) + added
    expect("profiles" in service or service["healthcheck"]["test"] == ["CMD", program, "healthcheck"], "has another health check")
    container = {"image": service["image"], "args": args, "env": env, "ports": []}
    for published in map(str, service.get("ports", [])):
        expect(published.startswith("127.0.0.1:"), f"publishes {published} beyond this machine")
        container["ports"].append({"containerPort": int(published.rsplit(":", 1)[1])})
    programs.check_container(container, told, int(service.get("stop_grace_period", "10s")[:-1]), users)
