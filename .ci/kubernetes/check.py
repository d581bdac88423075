"""Renders and checks what is in k8s/; `run` beside this file calls it. The order is that of main()."""

import functools
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import jsonschema
import kubernetes_validate
import referencing
import yaml

import agreement

KUBERNETES = "1.36"
HERE = pathlib.Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# What tells a password of the repository from one's own.
LOCAL_PASSWORD = "local-use-only"
LABELS = {
    f"app.kubernetes.io/{name}"
    for name in ("name", "instance", "version", "component", "part-of", "managed-by")
}
# What is applied by itself, beside a system that runs.
JOBS = ["audit", "ask", "replay", "backup", "restore"]
# The components that can be combined.
COMPONENTS = ["ha", "autoscale", "monitoring", "tls", "replay-in-viewer"]


def fail(where, what):
    sys.exit(f"{where}: {what}")


def main(home):
    # A copy, so that passwords can be made there without touching those that somebody has.
    copy = home / "k8s"
    shutil.rmtree(copy, ignore_errors=True)
    made = "made-by-k8s-credentials-make"
    shutil.copytree(REPOSITORY / "k8s", copy, ignore=shutil.ignore_patterns(made))

    overlays = sorted(path.parent for path in copy.glob("overlays/*/kustomization.yaml"))
    jobs = [copy / name for name in JOBS]
    overlays_of_jobs = [overlay for overlay in overlays if overlay.name.split("-")[0] in JOBS]
    overlays_of_all = [overlay for overlay in overlays if overlay not in overlays_of_jobs]

    for overlay in overlays_of_all:
        refused = kustomize(overlay)
        if refused.returncode == 0 or made not in refused.stderr:
            fail(overlay.name, f"renders without passwords of its own, or does not say how to make them: {refused.stderr}")
    print(f"without passwords of one's own, {len(overlays_of_all)} overlays refuse to render")
    subprocess.run(["bash", copy / "credentials" / "make"], check=True, stdout=subprocess.DEVNULL)

    local = render(copy)
    check("k8s", local)
    for overlay in overlays_of_all:
        objects = render(overlay)
        check(overlay.name, objects)
        if LOCAL_PASSWORD in yaml.safe_dump(objects):
            fail(overlay.name, "has a password of the repository")
    volume = render(copy / "backups")
    check("backups", volume)
    # A Job of its own expects the Secrets of the system, those of its certificates, and the backups.
    expected = [thing for thing in local if thing["kind"] == "Secret"] + volume
    for job in jobs + overlays_of_jobs:
        check(job.name, render(job), expected)
    count = 2 + len(overlays) + len(jobs)
    count += combinations(home, copy)
    check_rest(render(copy / "overlays/ha-at-rest"))
    check_rest(combination(home, [*COMPONENTS, "cert-manager", "at-rest"]))
    count += 1
    print(f"{count} kustomizations are valid for Kubernetes {KUBERNETES}, fit together, and agree with the programs")
    try:
        print(f"{agreement.check_compose()} services of Compose agree with the programs")
    except agreement.Disagreement as error:
        fail("Compose", error)

    check_alerts(home, copy)


def kustomize(directory):
    return subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True)


def render(directory):
    rendered = kustomize(directory)
    if rendered.returncode != 0:
        fail(directory.name, rendered.stderr)
    if rendered.stderr:
        fail(directory.name, f"warns: {rendered.stderr}")
    return list(yaml.safe_load_all(rendered.stdout))


def combinations(home, copy):
    """Renders every choice of components, forwards and backwards: their order is not to matter."""
    count = 0
    for size in range(len(COMPONENTS) + 1):
        for chosen in itertools.combinations(COMPONENTS, size):
            for order in {chosen, chosen[::-1]}:
                parts = [*order, "cert-manager"] if "tls" in order else order
                check(" + ".join(order) or "none of the components", combination(home, parts))
                count += 1
    return count


def combination(home, parts):
    """Renders the system with these components."""
    directory = home / "combination"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    parts = [f"../k8s/components/{part}" for part in parts]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../k8s/base"],
        "components": ["../k8s/credentials/own", *parts, "../k8s/components/common"],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(directory)


def check_rest(objects):
    """At rest nobody works, nobody declares, and nobody is woken up."""
    check("at rest", objects)
    for thing in objects:
        where = f"at rest: {thing['kind']} {thing['metadata']['name']}"
        match thing["kind"]:
            case "Deployment":
                # The viewer only looks.
                rests = thing["spec"]["replicas"] == 0 or thing["metadata"]["name"] == "viewer"
            case "ScaledObject":
                rests = thing["metadata"].get("annotations", {}).get("autoscaling.keda.sh/paused-replicas") == "0"
            case kind:
                rests = kind != "Job"
        if not rests:
            fail(where, "does not rest")


# Schemas


@functools.cache
def validator(kind):
    """The schema of our own for a kind that Kubernetes itself does not know."""
    registry = referencing.Registry().with_resources(
        (path.name, referencing.Resource.from_contents(
            json.loads(path.read_text()), default_specification=referencing.jsonschema.DRAFT202012))
        for path in HERE.glob("schemas/*.json")
    )
    path = HERE / "schemas" / f"{kind}.json"
    if not path.exists():
        return None
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=registry)


VALID = set()


def check_schema(where, thing):
    # Most objects are the same in most kustomizations.
    if (text := json.dumps(thing, sort_keys=True)) in VALID:
        return
    own = validator(f"{thing['apiVersion'].replace('/', '_')}_{thing['kind']}")
    try:
        if own:
            own.validate(thing)
        else:
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        fail(where, f"{'.'.join(map(str, error.path))}: {error.message}")
    except kubernetes_validate.SchemaNotFoundError:
        fail(where, "there is no schema of this kind, neither Kubernetes' nor one of our own")
    VALID.add(text)


# What the schemas do not say


def check(name, objects, elsewhere=()):
    """Everything about what one kustomization renders."""
    for thing in objects:
        where = f"{name}: {thing['kind']} {thing['metadata']['name']}"
        check_schema(where, thing)
        labels = thing["metadata"].get("labels", {})
        if missing := LABELS - labels.keys():
            fail(where, f"lacks the labels {sorted(missing)}")
        for claim in thing.get("spec", {}).get("volumeClaimTemplates", []):
            if "app.kubernetes.io/version" in claim["metadata"]["labels"]:
                fail(where, "gives its volumes a version, which could never be changed")
        if thing["kind"] != "Namespace" and thing["metadata"].get("namespace") != "decoupled":
            fail(where, "is not in the namespace")
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in itertools.chain(objects, elsewhere)}
    there |= {
        ("Secret", thing["spec"]["secretName"]) for thing in objects if thing["kind"] == "Certificate"
    }
    pods = [thing for thing in objects if "template" in thing.get("spec", {})]
    for thing in pods:
        check_pod(f"{name}: {thing['kind']} {thing['metadata']['name']}", thing["spec"]["template"], there)
    for thing in objects:
        check_selectors(f"{name}: {thing['kind']} {thing['metadata']['name']}", thing, pods)
    check_agreement(name, objects, pods)


def check_pod(where, template, there):
    """The restricted Pod Security Standard and a read-only root; and that what it names exists."""
    pod = template["spec"]
    if missing := LABELS - template["metadata"]["labels"].keys():
        fail(where, f"its pods lack the labels {sorted(missing)}")
    if pod.get("automountServiceAccountToken") is not False:
        fail(where, "mounts a token")
    context = pod["securityContext"]
    if not context.get("runAsNonRoot") or context["seccompProfile"] != {"type": "RuntimeDefault"}:
        fail(where, "is not restricted")
    if any(key in pod for key in ("hostNetwork", "hostPID", "hostIPC")):
        fail(where, "shares a namespace of the host")
    names = [("ServiceAccount", pod["serviceAccountName"])]
    for volume in pod.get("volumes", []):
        if "secret" in volume and volume["secret"]["secretName"] != "nats-tls":
            names.append(("Secret", volume["secret"]["secretName"]))
        if "configMap" in volume:
            names.append(("ConfigMap", volume["configMap"]["name"]))
        if "persistentVolumeClaim" in volume:
            names.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        if volume.keys() - {"name", "secret", "configMap", "emptyDir", "persistentVolumeClaim"}:
            fail(where, f"the volume {volume['name']} is of a kind that is not expected")
    for container in pod.get("initContainers", []) + pod["containers"]:
        inside = f"{where}, container {container['name']}"
        context = container["securityContext"]
        if (
            context.get("allowPrivilegeEscalation") is not False
            or not context.get("readOnlyRootFilesystem")
            or context.get("capabilities") != {"drop": ["ALL"]}
        ):
            fail(inside, "is not restricted")
        if not container["resources"]["requests"].keys() >= {"cpu", "memory"} or "memory" not in container["resources"]["limits"]:
            fail(inside, "may take as much as it likes")
        if ":" not in container["image"] or container["image"].endswith(":latest"):
            fail(inside, "its image has no version")
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                names.append(("Secret", reference["name"]))
            elif "PASSWORD" in variable["name"] and "value" in variable:
                fail(inside, f"{variable['name']} is not from a Secret")
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container and container[probe]["httpGet"]["port"] not in ports:
                fail(inside, f"its {probe} asks a port that is not there")
    for name in names:
        if name not in there:
            fail(where, f"names a {' '.join(name)} that is not there")


def check_agreement(name, objects, pods):
    """That what is rendered agrees with the programs, and with the broker's configuration."""
    labelled = [(thing, thing["metadata"]["labels"]) for thing in objects]
    labelled += [(thing, thing["spec"]["template"]["metadata"]["labels"]) for thing in pods]
    for thing, labels in labelled:
        said = labels["app.kubernetes.io/version"]
        if labels["app.kubernetes.io/name"] != "nats" and said != agreement.version():
            where = f"{name}: {thing['kind']} {thing['metadata']['name']}"
            fail(where, f"is of version {said}, and the programs of {agreement.version()}")
    for thing in pods:
        pod = thing["spec"]["template"]["spec"]
        for container in pod.get("initContainers", []) + pod["containers"]:
            try:
                agreement.check_container(container, grace=pod.get("terminationGracePeriodSeconds", 30))
            except agreement.Disagreement as error:
                fail(f"{name}: {thing['kind']} {thing['metadata']['name']}, container {container['name']}", error)
    for thing in objects:
        if thing["kind"] != "StatefulSet":
            continue
        pod = thing["spec"]["template"]["spec"]
        mounted = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        maps = [other for other in objects if other["kind"] == "ConfigMap" and other["metadata"]["name"] in mounted]
        files = [file for other in maps for file in other["data"].values()]
        [broker] = [container for container in pod["containers"] if container["name"] == "nats"]
        environment = {variable["name"]: variable.get("value") for variable in broker["env"]}
        try:
            agreement.check_broker("\n".join(files), environment)
        except agreement.Disagreement as error:
            fail(f"{name}: StatefulSet {thing['metadata']['name']}", error)


def matches(selector, labels):
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In" or labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def check_selectors(where, thing, pods):
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
            if not any(pod["kind"] == "Deployment" and pod["metadata"]["name"] == target for pod in pods):
                fail(where, f"scales {target}, which is not there")
            return
        case _:
            return
    selected = [pod["spec"]["template"] for pod in pods]
    selected = [template for template in selected if matches(selector, template["metadata"]["labels"])]
    if not selected:
        fail(where, "selects nothing")
    if thing["kind"] in ("Deployment", "StatefulSet") and len(selected) > 1:
        fail(where, "selects the pods of another, too")
    open_ports = {
        known
        for template in selected
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
        for known in (port["name"], port["containerPort"])
    }
    if unknown := set(ports) - open_ports:
        fail(where, f"names the ports {sorted(unknown)}, which no selected pod has")


# Alerts


def check_alerts(home, copy):
    directory = home / "alerts"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    rules = yaml.safe_load((copy / "components/monitoring/alerts.yaml").read_text())["spec"]
    (directory / "alerts.rules.yaml").write_text(yaml.safe_dump(rules))
    tests = copy / "components/monitoring/alerts.test.yaml"
    shutil.copy(tests, directory)
    for command in (["check", "rules", "--lint=all", "--lint-fatal", "alerts.rules.yaml"], ["test", "rules", tests.name]):
        done = subprocess.run(["promtool", *command], cwd=directory, capture_output=True, text=True)
        if done.returncode != 0:
            fail("alerts", done.stdout + done.stderr)

    # Each alert is seen to fire in one test at least, and not to fire in another.
    seen = {
        (test["alertname"], bool(test["exp_alerts"]))
        for case in yaml.safe_load(tests.read_text())["tests"]
        for test in case["alert_rule_test"]
    }
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    for alert, fires in itertools.product(alerts, (True, False)):
        if (alert, fires) not in seen:
            fail("alerts", f"no test makes {alert} {'fire' if fires else 'not fire'}")
    print(f"{len(alerts)} alerts fire when they should, and not when they should not")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
