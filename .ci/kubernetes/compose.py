"""Compares the Compose file and the images' Dockerfile with the programs and the broker."""

import re

import yaml

import programs
from objects import expect, expect_equal, within


def objects(root):
    """The services, each as an object for the schemas."""
    # A variable that is not set has the value behind its `:-`.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (root / "docker-compose.yml").read_text())
    for name, service in yaml.safe_load(text)["services"].items():
        yield {"kind": "Compose", "apiVersion": "v2", "metadata": {"name": name}, "spec": service}


def check(root, objects):
    services = {thing["metadata"]["name"]: thing["spec"] for thing in objects}
    broker, dockerfile = services.pop("nats"), (root / "Dockerfile").read_text()
    monitors = {name: services.pop(name) for name in ("prometheus", "grafana")}
    mounts = dict(volume.split(":")[1::-1] for volume in broker["volumes"])
    files = {name: (root / mounts[f"/etc/nats/{name}"]).read_text() for name in ("nats.conf", "start")}
    conf, users = programs.read(files, broker["command"], broker["environment"])
    [store], [address] = programs.setting("store_dir", conf), programs.setting("listen", conf)
    expect(store in mounts, f"stores in {store}, which is none of its volumes")
    expect_equal("the broker", broker["image"], f"nats:{programs.BROKER}-alpine")
    expect(f'image.version="{programs.VERSION}"' in dockerfile, "the images say another version")
    for name, service in services.items():
        with within(name):
            url = address.replace("0.0.0.0", "nats://nats")
            expect_equal("NATS_URL", service["environment"]["NATS_URL"], url)
            check_client(service, dockerfile, users)
    for name, service in monitors.items():
        with within(name):
            check_monitor(root, service)
    running = {name for name, service in services.items() if "profiles" not in service}
    [scrape] = yaml.safe_load((root / "monitoring/prometheus.yaml").read_text())["scrape_configs"]
    [found] = scrape["dns_sd_configs"]
    expect_equal("what Prometheus scrapes", set(found["names"]), running)
    expect_equal("where", {str(found["port"])}, set(re.findall(r"^ENV ADMIN_ADDR=\S+:(\d+)$", dockerfile, re.M)))


def check_monitor(root, service):
    expect_equal("the profile", service["profiles"], ["monitoring"])
    expect(re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{service['image']} may change")
    for file, _, mode in (volume.split(":") for volume in service["volumes"]):
        expect(mode == "ro" and (root / file).is_file(), f"{file} is no file, or may be written")


def check_client(service, dockerfile, users):
    image = re.split("[/:]", service["image"])[1]
    expect_equal("the target", service.get("build", {}).get("target", image), image)
    program = f"/usr/local/bin/{'decoupled' if image == 'cli' else image}"
    expect(f'ENTRYPOINT ["{program}"]' in dockerfile, f"{program} is not in the image")
    told = {name: "" if value is None else str(value) for name, value in service["environment"].items()}
    args = service.get("entrypoint", [])[1:] + service.get("command", [])
    if "profiles" in service:
        # The user adds the command. All commands have the same settings of the broker.
        args.append("list" if args else "audit")
    else:
        expect_equal("healthcheck", service["healthcheck"]["test"], ["CMD", program, "healthcheck"])
        told |= dict(re.findall(r"^ENV (ADMIN_ADDR)=(\S+)$", dockerfile, re.M))
    ports = [{"containerPort": str(each).rsplit(":", 1)[1]} for each in service.get("ports", [])]
    env = [{"name": name} for name in service["environment"]]
    container = {"image": service["image"], "args": args, "env": env, "ports": ports}
    grace = int(service.get("stop_grace_period", "10s").removesuffix("s"))
    programs.check_container(container, told, grace, users)
