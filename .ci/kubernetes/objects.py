"""Reads Kubernetes objects for the checks."""

import base64
import contextlib


class Refused(Exception):
    """A check that failed, and its place."""


def expect(holds, message):
    if not holds:
        raise Refused(message)


def expect_equal(what, found, expected):
    expect(found == expected, f"{what}: {found} instead of {expected}")


@contextlib.contextmanager
def within(where):
    """Adds this place to a refusal inside it."""
    try:
        yield
    except Refused as refused:
        raise Refused(f"{where}: {refused}") from None


def title(thing):
    return f"{thing['kind']} {thing['metadata']['name']}"


def of_kind(objects, *kinds):
    return [thing for thing in objects if thing["kind"] in kinds]


def workloads(objects):
    return of_kind(objects, "Deployment", "StatefulSet", "CronJob")


def template(workload):
    return find("template", workload)[0]


def labels(workload):
    """The labels of its pods."""
    return template(workload)["metadata"]["labels"]


def containers(workload):
    return sum(find("initContainers", workload) + find("containers", workload), [])


def find(key, thing):
    """Each value under this key, at any depth."""
    if isinstance(thing, list):
        return [found for each in thing for found in find(key, each)]
    if isinstance(thing, dict):
        return ([thing[key]] if key in thing else []) + find(key, list(thing.values()))
    return []


def ports(workload):
    """The ports of its pods, by their names."""
    declared = sum(find("ports", containers(workload)), [])
    return {port["name"]: port["containerPort"] for port in declared}


def one(kind, name, objects):
    """The object of this name, which has to be there."""
    found = [thing for thing in objects if title(thing) == f"{kind} {name}"]
    expect(found, f"names a {kind} {name} that is not there")
    return found[0]


def environment(container, objects):
    """The environment of a container, with None for the values that Kubernetes fills in."""
    found = {}
    for source in find("configMapRef", container):
        found |= one("ConfigMap", source["name"], objects)["data"]
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value")
        for secret in find("secretKeyRef", variable):
            value = one("Secret", secret["name"], objects)["data"][secret["key"]]
            found[variable["name"]] = base64.b64decode(value).decode()
    return found


def matches(selector, these):
    """Whether a selector matches these labels."""
    wanted = {key: [value] for key, value in selector.get("matchLabels", {}).items()}
    wanted |= {each["key"]: each["values"] for each in selector.get("matchExpressions", [])}
    return all(these.get(key) in values for key, values in wanted.items())


def selected_by(selector, objects):
    return [workload for workload in workloads(objects) if matches(selector, labels(workload))]
