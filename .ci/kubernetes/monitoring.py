"""Has a real Prometheus scrape a lab, and asks it all that the dashboard and the rules ask, while work flows and while it
does not; `run` beside this file calls it. Prometheus is started as docker-compose.yml does, at addresses of its own."""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

from objects import expect, find
from programs import REPOSITORY, TARGET

LAB = TARGET / "debug/lab"
# A killed service fills a queue within seconds, and the alerts notice that in a minute. Only a bug reaches this limit.
PATIENCE = 300
# The values of Grafana's variables.
VARIABLES = {"$namespace": ".*", "$__rate_interval": "10s"}


def main(home):
    # So that the lab and Prometheus end with this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    dashboard = (REPOSITORY / "k8s/components/monitoring/dashboard.json").read_text()
    for name, value in VARIABLES.items():
        dashboard = dashboard.replace(name, value)
    panels = {panel["title"]: find("expr", panel) for panel in json.loads(dashboard)["panels"] if "targets" in panel}
    with lab(home) as do, prometheus(home, do.directory) as prom:
        walk(do, prom, panels)
    queries = sum(map(len, panels.values()))
    print(f"{queries} queries of {len(panels)} panels, and all rules, have the expected values in a lab")


def walk(do, prom, panels):
    def value(title, label=""):
        found = prom.values(panels[title][0])
        return found.get(label) if label else sum(found.values())

    def all_tell():
        queries = sum(panels.values(), []) + prom.rules("recording", "name")
        return [query for query in queries if not any(map(math.isfinite, prom.values(query).values()))]

    eventually("each query tells something while work flows", lambda: not all_tell(), all_tell)
    expect_alerts(prom, "while work flows", set())
    eventually("requests flow", lambda: value("Requests a second") > 0)
    eventually("both services work", lambda: value("Replicas that work", "generator") == 2)
    eventually("the time of a job has its trace as an exemplar", lambda: prom.exemplars())
    health = prom.rules("recording", "health") + prom.rules("alerting", "health")
    expect(set(health) == {"ok"}, f"a rule is not ok: {health}")

    do("kill", "generators")
    expect_alerts(prom, "without generators", {"NothingSettled", "QueueFull"})
    eventually("the requests wait", lambda: value("Messages that wait", "REQUESTS") > 0)
    eventually("no generator works", lambda: value("Replicas that work", "generator") == 0)
    do("start", "generators")
    expect_alerts(prom, "with generators again", set())

    do("send", "REQUESTS", "no request")
    expect_alerts(prom, "with a message that nothing can handle", {"DeadLetters"})
    expect(value("Dead letters") == 1, "there is one dead letter")

    do("kill", "broker")
    expect_alerts(prom, "without a broker", {"FlowUnknown"})
    eventually("each process says so", lambda: value("Processes without a broker") == 5)
    do("start", "broker")
    expect_alerts(prom, "with the broker again", {"DeadLetters"})


def expect_alerts(prom, when, names):
    """Alerts are pending as soon as their expression holds. `promtool test` checks the time until they fire."""
    active = lambda: set(prom.values("ALERTS", "alertname"))
    eventually(f"{when} these alerts are active: {names or 'none'}", lambda: active() == names, active)


@contextlib.contextmanager
def lab(home):
    """Two generators, a requestor and queues that are soon full."""
    # Spans are recorded for a collector that does not exist.
    env = os.environ | {"QUEUE_LIMIT": "300", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "NO_COLOR": "1"}
    with open(home / "lab.log", "w") as log:
        up = subprocess.Popen([LAB, "up", "--rate", "50"], cwd=REPOSITORY, env=env, stdout=log, stderr=log)
    try:
        control = lambda: [*TARGET.glob(f"lab/up-{up.pid}*/control.json")]
        eventually("the lab runs", lambda: up.poll() is None and control())
        env["LAB_CONTROL_FILE"] = str(control()[0])

        def do(*words):
            subprocess.run([LAB, *words], env=env, check=True, stdout=subprocess.DEVNULL)

        do.directory = control()[0].parent
        yield do
    finally:
        up.terminate()
        up.wait(PATIENCE)
    expect(up.returncode == 0, f"nothing is lost or doubled: {(home / 'lab.log').read_text()[-2000:]}")


@contextlib.contextmanager
def prometheus(home, directory):
    config = yaml.safe_load((REPOSITORY / "monitoring/prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [name.replace("/tmp/", f"{home}/") for name in config["rule_files"]]
    for scrape in config["scrape_configs"]:
        [dns] = scrape.pop("dns_sd_configs")
        scrape["file_sd_configs"] = [{"files": [f"{home}/targets.json"], "refresh_interval": dns["refresh_interval"]}]
    (home / "prometheus.yaml").write_text(yaml.safe_dump(config))
    service = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["prometheus"]
    [command] = service["command"]
    command = command.replace("$$", "$").replace("/tmp/", f"{home}/")
    for volume in service["volumes"]:
        source, inside, _ = volume.split(":")
        ours = home / "prometheus.yaml" if inside.endswith("prometheus.yaml") else REPOSITORY / source
        command = command.replace(inside, str(ours))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        addr = "127.0.0.1:%d" % free.getsockname()[1]
    with open(home / "prometheus.log", "w") as log:
        words = [*service["entrypoint"], f"{command} --web.listen-address={addr}"]
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        yield Prometheus(addr, home / "targets.json", directory)
    finally:
        process.terminate()
        process.wait(PATIENCE)


class Prometheus:
    def __init__(self, addr, targets, directory):
        self.addr, self.targets, self.directory = addr, targets, directory
        eventually("Prometheus answers", lambda: self.get("/-/ready", read=bytes.strip))

    def get(self, path, read=json.loads, **query):
        try:
            with urllib.request.urlopen(f"http://{self.addr}{path}?{urllib.parse.urlencode(query)}") as answer:
                return read(answer.read())
        except urllib.error.HTTPError as error:
            expect(error.code == 503, f"{query} is refused: {error.read().decode()}")
        except urllib.error.URLError:
            return None

    def values(self, query, label=None):
        """The values of each series, by this label or by all labels."""
        self.find_targets()
        found = self.get("/api/v1/query", query=query)["data"]["result"]
        name = lambda metric: metric.get(label, "") if label else " ".join(metric.values())
        return {name(each["metric"]): float(each["value"][1]) for each in found}

    def exemplars(self):
        query = 'generator_handle_duration_seconds_bucket{queue="REQUESTS"}'
        found = self.get("/api/v1/query_exemplars", query=query, start=0, end=time.time())
        return find("trace_id", found["data"])

    def rules(self, kind, field):
        groups = self.get("/api/v1/rules")["data"]["groups"]
        return [rule[field] for group in groups for rule in group["rules"] if rule["type"] == kind]

    def find_targets(self):
        """Makes it scrape the running processes, whose logs have their addresses, instead of using DNS."""
        logs = [log.read_text() for log in self.directory.glob("*.log") if ".earlier" not in log.name]
        found = [re.findall(r"admin endpoint listens addr=(\S+)", log)[-1:] for log in logs]
        targets = json.dumps([{"targets": sorted(sum(found, []))}])
        if not self.targets.exists() or self.targets.read_text() != targets:
            self.targets.write_text(targets)


def eventually(what, holds, found=lambda: "not so"):
    until = time.monotonic() + PATIENCE
    while not holds():
        expect(time.monotonic() < until, f"{what}: {found()}")
        time.sleep(0.2)
    print(f"  {what}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) / "monitoring")
