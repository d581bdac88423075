"""What the checks ask of objects, as Kubernetes describes them."""


def title(thing):
    return f"{thing['kind']} {thing['metadata']['name']}"


def of_kind(objects, *kinds):
    return [thing for thing in objects if thing["kind"] in kinds]


def workloads(objects):
    """Whatever has pods."""
    return [thing for thing in objects if "template" in thing.get("spec", {})]


def labels_of(workload):
    """The labels of its pods."""
    return workload["spec"]["template"]["metadata"]["labels"]


def containers(workload):
    pod = workload["spec"]["template"]["spec"]
    return pod.get("initContainers", []) + pod["containers"]


def ports_of(workload):
    """The ports of its pods, by their names."""
    return {port["name"]: port["containerPort"] for each in containers(workload) for port in each.get("ports", [])}


def environment_of(container):
    """What is set there; None where it comes from somewhere else."""
    return {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def matches(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In" or labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def selected_by(selector, objects):
    return [workload for workload in workloads(objects) if matches(selector, labels_of(workload))]
