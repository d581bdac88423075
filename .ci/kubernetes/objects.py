"""What the checks ask of objects, as Kubernetes describes them."""

import base64
import contextlib


class Refused(Exception):
    """What does not hold, and where."""


def expect(holds, what):
    if not holds:
        raise Refused(what)


@contextlib.contextmanager
def within(where):
    """Whatever is refused inside is refused there."""
    try:
        yield
    except Refused as refused:
        raise Refused(f"{where}: {refused}") from None


def title(thing):
    return f"{thing['kind']} {thing['metadata']['name']}"


def of_kind(objects, *kinds):
    return [thing for thing in objects if thing["kind"] in kinds]


def template(workload):
    spec = workload["spec"]
    return spec["jobTemplate"]["spec"]["template"] if workload["kind"] == "CronJob" else spec["template"]


def workloads(objects):
    return of_kind(objects, "Deployment", "StatefulSet", "CronJob")


def labels(workload):
    """The labels of its pods."""
    return template(workload)["metadata"]["labels"]


def containers(workload):
    return template(workload)["spec"].get("initContainers", []) + template(workload)["spec"]["containers"]


def ports(workload):
    """The ports of its pods, by their names."""
    return {port["name"]: port["containerPort"] for each in containers(workload) for port in each.get("ports", [])}


def data(kind, name, objects):
    """What is in a ConfigMap or Secret."""
    found = [thing["data"] for thing in of_kind(objects, kind) if thing["metadata"]["name"] == name]
    expect(found, f"names a {kind} {name} that is not there")
    return {key: base64.b64decode(value).decode() for key, value in found[0].items()} if kind == "Secret" else found[0]


def environment(container, objects):
    """What is set there, and what comes from a Secret, or None where Kubernetes says it."""
    found = {}
    for source in container.get("envFrom", []):
        found |= data("ConfigMap", source["configMapRef"]["name"], objects)
    for variable in container.get("env", []):
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = data("Secret", secret["name"], objects)[secret["key"]] if secret else variable.get("value")
    return found


def matches(selector, these):
    """Whether a selector selects what has these labels."""
    named = all(these.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    chosen = all(these.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
    return named and chosen


def selected_by(selector, objects):
    return [workload for workload in workloads(objects) if matches(selector, labels(workload))]
