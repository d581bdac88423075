"""Checks all that one kustomization renders: a whole system, or what is applied by itself beside one."""

import concurrent.futures

import agreement
import broker
import certificates
import network
import pods
import queues
import render
import schemas
from objects import of_kind, title
from refusal import expect, within

# What is applied by itself, beside a system that runs.
JOBS = ["audit", "ask", "replay", "backup", "restore"]
# The volume that some of them need.
VOLUME = "backups"


def render_all(root, overlays):
    """Renders systems and Jobs, by their names: where they are below k8s/, or the components that are combined."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        systems, jobs = {}, {}
        for name in [".", *(f"overlays/{overlay}" for overlay in overlays), *JOBS, VOLUME]:
            (jobs if is_job(name) else systems)[name] = pool.submit(render_one, root, name)
        for parts in [*render.combinations(), (*render.COMPONENTS, "at-rest")]:
            name = " + ".join(parts) or "none of the components"
            systems[name] = pool.submit(render_one, root, parts)
        return [{name: future.result() for name, future in found.items()} for found in (systems, jobs)]


def is_job(name):
    return name.split("/")[-1].split("-")[0] in [*JOBS, VOLUME]


def render_one(root, what):
    with within(str(what)):
        return render.combination(root, what) if isinstance(what, tuple) else render.render(root / "k8s" / what)


def check(name, objects, jobs, everybody):
    """A system, the Jobs that are applied beside it, and the labels of all pods that there are."""
    with within("k8s" if name == "." else name):
        check_objects(objects, objects, objects)
        network.check_peers(objects, everybody)
        network.check_outsiders(objects)
        queues.check(objects)
        check_credentials("local" if name == "." else "own", objects)
        if name.endswith("at-rest"):
            check_rest(objects)
        for job in JOBS:
            with within(f"the Job {job} beside it"):
                network.check_ways(jobs[job], objects)


def check_credentials(which, objects):
    """Other passwords are another pod: else the broker would go on with those that it started with."""
    for thing in of_kind(objects, "StatefulSet") + of_kind(objects, "Deployment"):
        annotations = thing["spec"]["template"]["metadata"].get("annotations", {})
        expect(annotations.get("decoupled/credentials") == which, f"{title(thing)} does not say which credentials it has")


def check_job(name, objects, systems, jobs):
    """What is applied by itself, beside the system that its name says."""
    beside = systems[" + ".join(name.split("-")[1:]) or "."]
    with within(name):
        # It expects the Secrets of the system, and the backups.
        check_objects(objects, beside, objects + of_kind(beside, "Secret") + jobs[VOLUME])


def check_objects(objects, beside, known):
    """Objects that may name what is known, in a system or beside it."""
    for thing in objects:
        with within(title(thing)):
            schemas.check(thing)
    pods.check(objects, known)
    network.check_policies(objects)
    broker.check(objects)
    network.check_ways(objects, beside)
    certificates.check(objects, beside)
    agreement.check(objects, beside)


def check_rest(objects):
    """At rest nobody works, nobody asks, nobody declares, and nobody is woken up."""
    for thing in objects:
        match thing["kind"]:
            case "Deployment":
                rests = thing["spec"].get("replicas") == 0
            case "ScaledObject":
                rests = thing["metadata"].get("annotations", {}).get("autoscaling.keda.sh/paused-replicas") == "0"
            case kind:
                rests = kind != "Job"
        expect(rests, f"{title(thing)} does not rest")
