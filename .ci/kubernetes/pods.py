"""What the schemas do not say of objects and their pods: labels, the restricted Pod Security Standard, a
read-only root, whatever survives a drain, and that all they name is there."""

import base64
import re

import queues
from objects import containers, environment_of, labels_of, matches, of_kind, ports_of, selected_by, title, workloads
from refusal import expect, within

LABELS = {
    f"app.kubernetes.io/{name}"
    for name in ("name", "instance", "version", "component", "part-of", "managed-by")
}
# Somebody may have put it there, with these; see components/tls.
CERTIFICATE = "nats-tls"
CERTIFICATE_FILES = {"tls.crt", "tls.key", "ca.crt"}
# A path in a command, a value, or a configuration; what follows the host of a URL is none.
PATH = re.compile(r"(?:^|(?<=[\s=\"',:]))/\w[\w./-]*", re.MULTILINE)


def check_object(thing):
    labels = thing["metadata"].get("labels", {})
    expect(not LABELS - labels.keys(), f"lacks the labels {sorted(LABELS - labels.keys())}")
    for claim in thing.get("spec", {}).get("volumeClaimTemplates", []):
        expect(
            "app.kubernetes.io/version" not in claim["metadata"]["labels"],
            "gives its volumes a version, which could never be changed",
        )
    if thing["kind"] == "Namespace":
        for mode in ("enforce", "warn", "audit"):
            standard = labels.get(f"pod-security.kubernetes.io/{mode}")
            expect(standard == "restricted", f"does not {mode} the restricted standard, but {standard}")
    else:
        expect(thing["metadata"].get("namespace") == "decoupled", "is not in the namespace")


def check_pod(workload, known):
    """The pods of a workload, where these objects are known."""
    template = workload["spec"]["template"]
    pod = template["spec"]
    missing = LABELS - template["metadata"]["labels"].keys()
    expect(not missing, f"its pods lack the labels {sorted(missing)}")
    expect(pod.get("automountServiceAccountToken") is False, "mounts a token")
    shared = [key for key in ("hostNetwork", "hostPID", "hostIPC") if key in pod]
    expect(not shared, f"has {shared} of the host")
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in known}
    names = [("ServiceAccount", pod["serviceAccountName"])]
    for volume in pod.get("volumes", []):
        if "secret" in volume and volume["secret"]["secretName"] != CERTIFICATE:
            names.append(("Secret", volume["secret"]["secretName"]))
        if "configMap" in volume:
            names.append(("ConfigMap", volume["configMap"]["name"]))
        if "persistentVolumeClaim" in volume:
            names.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        unknown = volume.keys() - {"name", "secret", "configMap", "emptyDir", "persistentVolumeClaim"}
        expect(not unknown, f"the volume {volume['name']} is of a kind that is not expected")
    for container in containers(workload):
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                names.append(("Secret", reference["name"]))
    for name in names:
        expect(name in there, f"names a {' '.join(name)} that is not there")
    for container in containers(workload):
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                key, secret = reference["key"], reference["name"]
                expect(key in contents_of("Secret", secret, known), f"the Secret {secret} has no {key}")
    for container in containers(workload):
        with within(f"container {container['name']}"):
            check_container(container, pod)
            check_ports(container, workload)
            check_paths(container, workload, known)


def check_container(container, pod):
    context = pod["securityContext"] | container["securityContext"]
    expect(context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0, "may be root")
    expect(context.get("seccompProfile") == {"type": "RuntimeDefault"}, "may make any system call")
    expect(context.get("allowPrivilegeEscalation") is False, "may become more than it is")
    expect(context.get("readOnlyRootFilesystem") is True, "may write into its image")
    expect(context.get("capabilities") == {"drop": ["ALL"]}, "has capabilities")
    expect(not context.get("privileged"), "is privileged")
    resources = container["resources"]
    bounded = resources["requests"].keys() >= {"cpu", "memory"} and "memory" in resources["limits"]
    expect(bounded, "may take as much as it likes")
    tagged = ":" in container["image"] and not container["image"].endswith(":latest")
    expect(tagged, "its image has no version")
    for name, value in environment_of(container).items():
        expect("PASSWORD" not in name or value is None, f"{name} is not from a Secret")
    ports = {port["name"] for port in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {}).get("httpGet", {}).get("port")
        expect(probe not in container or asked in ports, f"its {probe} asks a port that is not there")


def check_ports(container, workload):
    """The ports that are among its arguments are its own, or those of its neighbours in the pod."""
    own = {port["containerPort"] for port in container.get("ports", [])}
    told = " ".join(container.get("args", []))
    for known, pattern in ((own, r"-port=(\d+)"), (ports_of(workload).values(), r"//localhost:(\d+)")):
        for port in re.findall(pattern, told):
            expect(int(port) in known, f"is told of port {port}, which is not there")


# Paths


def mounts_of(container, workload, known):
    """Each path where something is mounted, with the files that are there: None, if that is for programs to say."""
    pod = workload["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for claim in workload["spec"].get("volumeClaimTemplates", []):
        volumes[claim["metadata"]["name"]] = {"persistentVolumeClaim": {}}
    mounts = {}
    for mount in container.get("volumeMounts", []):
        expect(mount["name"] in volumes, f"mounts {mount['name']}, which is no volume")
        mounts[mount["mountPath"]] = files_of(volumes[mount["name"]], known)
    return mounts


def files_of(volume, known):
    """The files in a volume, with their contents, or None if it has none yet."""
    if "configMap" in volume:
        kind, source = "ConfigMap", volume["configMap"]
        name = source["name"]
    elif "secret" in volume:
        kind, source = "Secret", volume["secret"]
        name = source["secretName"]
    else:
        return None
    contents = contents_of(kind, name, known)
    if "items" not in source:
        return contents
    for item in source["items"]:
        expect(item["key"] in contents, f"mounts {item['key']} of the {kind} {name}, where it is not")
    return {item["path"]: contents[item["key"]] for item in source["items"]}


def contents_of(kind, name, known):
    if (kind, name) == ("Secret", CERTIFICATE):
        return dict.fromkeys(CERTIFICATE_FILES, "")
    [data] = [thing["data"] for thing in of_kind(known, kind) if thing["metadata"]["name"] == name]
    return {key: base64.b64decode(value).decode() for key, value in data.items()} if kind == "Secret" else data


def configuration_of(mounts):
    """All of the configuration that is mounted somewhere, without its comments."""
    text = "\n".join(text for files in mounts.values() for text in (files or {}).values())
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def check_paths(container, workload, known):
    """Every path that a container is told of is in a volume of it, and is there."""
    mounts = mounts_of(container, workload, known)
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    told = [*container.get("command", []), *container.get("args", []), *command]
    told += [value for value in environment_of(container).values() if value]
    # What the programs of a pod leave for each other has the name that a configuration gives it.
    left = {
        path
        for each in containers(workload)
        for path in PATH.findall(configuration_of(mounts_of(each, workload, known)))
    }
    for path in PATH.findall("\n".join([*told, configuration_of(mounts)])):
        where = [mount for mount in mounts if path == mount or path.startswith(mount + "/")]
        expect(where, f"names {path}, which is in none of its volumes")
        mount = max(where, key=len)
        inside = path[len(mount) + 1:]
        there = mounts[mount] is None or not inside or inside in mounts[mount]
        expect(there, f"names {path}, which is not there")
        if is_scratch(mount, container, workload):
            expect(path in left, f"names {path}, which no configuration names")


def is_scratch(path, container, workload):
    """Whether what is mounted there is empty at first, and gone with the pod."""
    [name] = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == path]
    volumes = workload["spec"]["template"]["spec"].get("volumes", [])
    return any(volume["name"] == name and "emptyDir" in volume for volume in volumes)


# Whatever selects pods


def check_selectors(thing, objects):
    """Whatever selects pods selects some, and the ports that it names are theirs."""
    spec, ports = thing.get("spec", {}), []
    match thing["kind"]:
        case "Service":
            selector, ports = {"matchLabels": spec["selector"]}, [port["targetPort"] for port in spec["ports"]]
        case "NetworkPolicy":
            selector = spec["podSelector"]
            ports = [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
        case "PodMonitor":
            selector, ports = spec["selector"], [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]]
        case "PodDisruptionBudget" | "Deployment" | "StatefulSet":
            selector = spec["selector"]
        case "ScaledObject":
            target = spec["scaleTargetRef"]["name"]
            there = any(each["metadata"]["name"] == target for each in of_kind(objects, "Deployment"))
            expect(there, f"scales {target}, which is not there")
            return
        case _:
            return
    selected = selected_by(selector, objects)
    expect(selected, "selects nothing")
    if thing["kind"] in ("Deployment", "StatefulSet"):
        expect(len(selected) == 1, "selects the pods of another, too")
    known = {port for workload in selected for named in ports_of(workload).items() for port in named}
    expect(not set(ports) - known, f"names the ports {sorted(set(ports) - known)}, which no selected pod has")


def check_drains(objects):
    """A drain of nodes takes one replica at a time of whoever takes from a queue, and a rollout none."""
    budgets = of_kind(objects, "PodDisruptionBudget")
    for budget in budgets:
        expect(budget["spec"].get("maxUnavailable") == 1, f"{title(budget)} does not let go of one at a time")
    # A single broker has no budget, which would hold up every drain.
    several = [each for each in of_kind(objects, "StatefulSet") if each["spec"]["replicas"] > 1]
    takers = {consumer for _, consumer in queues.consumers()}
    sides = [each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] in takers]
    for workload in several + sides:
        own = [budget for budget in budgets if matches(budget["spec"]["selector"], labels_of(workload))]
        expect(len(own) == 1, f"{title(workload)} has {len(own)} disruption budgets")
    for workload in sides:
        strategy = workload["spec"].get("strategy", {}).get("rollingUpdate", {})
        expect(strategy.get("maxUnavailable") == 0, f"{title(workload)} is less than itself in a rollout")


def check(objects, known):
    for thing in objects:
        with within(title(thing)):
            check_object(thing)
            check_selectors(thing, objects)
    for workload in workloads(objects):
        with within(title(workload)):
            check_pod(workload, known)
    check_drains(objects)
