"""Rules for one rendered system that no tool has: its parts select, reach and trust each other."""

import json
import os
import re
from itertools import product

import programs
from objects import containers, environment, expect, expect_equal, find, labels, matches
from objects import of_kind, one, ports, selected_by, template, title, within, workloads

LABEL, NAMESPACE = "app.kubernetes.io/", "kubernetes.io/metadata.name"
INSTALLATION = {LABEL + "name", LABEL + "instance"}
LABELS = INSTALLATION | {LABEL + name for name in ("version", "component", "part-of", "managed-by")}
# Objects that an apply may leave behind: those that do nothing, and those for which docs/kubernetes.md has a command
# that deletes them.
HARMLESS = {"ConfigMap", "Secret", "Issuer", "Certificate", "PodDisruptionBudget", "NetworkPolicy"}
DELETED = programs.source("docs/kubernetes.md", r"\b(?:scaledobject|prometheusrule|podmonitor)/\w+")
# Pods of other namespaces that policies name.
OUTSIDERS = {
    "KEDA": {NAMESPACE: "keda", "app": "keda-operator"},
    "Prometheus": {NAMESPACE: "monitoring", LABEL + "name": "prometheus"},
    "the collector of traces": {NAMESPACE: "monitoring"},
    "the DNS": {NAMESPACE: "kube-system", "k8s-app": "kube-dns"},
}


def check(objects):
    [broker], [namespace] = of_kind(objects, "StatefulSet"), of_kind(objects, "Namespace")
    with within(title(broker)):
        told, users = check_broker(broker, objects)
    for config in set(find("name", find("configMapRef", objects))):
        unknown = one("ConfigMap", config, objects)["data"].keys() - programs.settings("requestor").keys()
        expect(not unknown, f"ConfigMap {config} has {unknown}, which no service knows")
    for thing in objects:
        with within(title(thing)):
            check_object(thing, namespace["metadata"]["name"], objects)
            for container in containers(thing):
                check_paths(thing, container, objects)
                if thing is not broker:
                    check_client(thing, container, told, users, objects)
            if thing["kind"] == "ScaledObject":
                check_scaling(thing, broker, namespace, objects)
    check_policies(namespace, set(connections(broker, objects)), objects)


def check_broker(broker, objects):
    """The broker reads its configuration as its container gives it, stores on a volume that lasts, and knows
    the others. Returns the settings that its clients need, and its users."""
    [container] = [each for each in containers(broker) if each["name"] == "nats"]
    given, [config] = environment(container, objects), find("configMap", broker)
    conf, users = programs.read(one("ConfigMap", config["name"], objects)["data"], container["command"], given)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    claims = [claim["metadata"]["name"] for claim in broker["spec"]["volumeClaimTemplates"]]
    [store], [pid] = programs.setting("store_dir", conf), programs.setting("pid_file", conf)
    expect(mounts.get(store) in claims, f"stores in {store}, which does not last")
    expect(os.path.dirname(pid) in mounts, f"has no volume for {pid}")
    signalled = re.findall(r"-sl=\w+=([\w/.]+)", json.dumps(template(broker)))
    expect_equal("the signalled pid_file", set(signalled), {pid})
    listens = {f"0.0.0.0:{port['containerPort']}" for port in container["ports"]}
    expect_equal("listens", set(programs.setting("(?:listen|http)", conf)), listens)
    check_life(broker, container, conf)
    service, replicas = broker["spec"]["serviceName"], broker["spec"]["replicas"]
    early = one("Service", service, objects)["spec"].get("publishNotReadyAddresses")
    expect(early, "the brokers do not find each other before they are ready")
    members = [f"{broker['metadata']['name']}-{number}.{service}" for number in range(replicas)]
    others, hosts = (members, members) if replicas > 1 else ([], [service])
    routes = "".join(given[name] for name in re.findall(r"\$(ROUTE_\d+)", conf))
    expect_equal("routes", re.findall(r"@([\w.-]+):6222", routes), others)
    tls = "tls {" in conf
    expect(not (tls and others) or "verify: true" in conf, "asks other brokers for no certificate")
    made = {each["spec"]["secretName"]: each["spec"] for each in of_kind(objects, "Certificate")}
    expect_equal("Secrets without a certificate", set(find("secretName", objects)) - made.keys(), set())
    for certificate in [made[secret] for secret in find("secretName", broker)]:
        missing = sorted({*hosts, "client auth"}.difference(certificate["dnsNames"], certificate["usages"]))
        expect(not missing, f"the certificate lacks {missing}")
    return {
        "NATS_URL": ",".join(f"nats://{host}:{ports(broker)['client']}" for host in hosts),
        "REPLICAS": str(replicas),
        "NATS_CA": "/etc/nats-tls/ca.crt" if tls else None,
    }, users


def check_life(broker, container, conf):
    """The broker has enough time to start and to end, and its probes depend on nothing else."""
    for image in [image for image in find("image", broker) if image.startswith("nats:")]:
        expect_equal("the image", image, f"nats:{programs.BROKER}-alpine")
    for probe, asked in (("startup", "server"), ("readiness", "server"), ("liveness", "enabled")):
        path = container[f"{probe}Probe"]["httpGet"]["path"]
        expect_equal(f"the {probe} probe", path, f"/healthz?js-{asked}-only=true")
    start, [grace] = container["startupProbe"], find("terminationGracePeriodSeconds", broker)
    expect(start["failureThreshold"] * start["periodSeconds"] >= 300, "has no time to read a large store")
    [duck] = programs.setting("lame_duck_duration", conf)
    expect(grace > int(duck.removesuffix("s")), f"has {grace} s to end, and is a lame duck for {duck}")


def check_object(thing, namespace, objects):
    """An object belongs to this installation, and selects the pods of its own component."""
    spec, kind, own = thing.get("spec", {}), thing["kind"], thing["metadata"].get("labels", {})
    expect(LABELS <= own.keys(), f"lacks the labels {sorted(LABELS - own.keys())}")
    selector = {"matchLabels": spec["selector"]} if kind == "Service" else spec.get("selector")
    for each in find("matchLabels", [spec, selector]):
        expect(each.keys() > INSTALLATION or NAMESPACE in each, "selects the pods of another installation, too")
    if kind in ("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
        [selected] = selected_by({"matchLabels": {LABEL + "component": own[LABEL + "component"]}}, objects)
        expect(selected_by(selector, objects) == [selected], "selects the pods of another")
    if kind == "Service":
        unknown = {port["targetPort"] for port in spec["ports"]} - ports(selected).keys()
        expect(not unknown, f"names the ports {unknown}, which no selected pod has")
    named = {thing["metadata"].get("namespace", namespace)}
    named.update(re.findall(r"[\w-]+\.([\w-]+)\.svc\b", json.dumps(thing)))
    expect(named == {namespace}, f"names another namespace: {named - {namespace}}")
    expect('namespace=\\"' not in json.dumps(spec), "names a namespace, which may be another")
    if containers(thing):
        [user], non_root = find("runAsUser", spec), find("runAsNonRoot", spec)
        expect(user > 0 and non_root == [True], "may be root")
    # A drain of nodes stops one of several replicas at a time, and a rollout none.
    is_service = title(thing) in ("Deployment requestor", "Deployment generator")
    if is_service:
        expect_equal("shrinks in a rollout", find("maxUnavailable", spec), [0])
    if is_service or (kind == "StatefulSet" and spec["replicas"] > 1):
        budgets = [each["spec"] for each in of_kind(objects, "PodDisruptionBudget")]
        own = [each for each in budgets if matches(each["selector"], labels(thing))]
        expect_equal("the budget", find("maxUnavailable", own), [1])
        spread = [selected_by(each, objects) for each in find("labelSelector", spec)]
        expect(spread and all(each == [thing] for each in spread), "is not spread among its own")


def check_paths(workload, container, objects):
    """Each path in the settings of a container is in a volume that exists."""
    for claim in find("claimName", workload):
        one("PersistentVolumeClaim", claim, objects)
    volumes = find("volumes", workload) + find("metadata", find("volumeClaimTemplates", workload))
    mounts = [each for each in container.get("volumeMounts", []) if each["name"] in find("name", volumes)]
    directories = tuple(f"{mount['mountPath']}/" for mount in mounts)
    told = container.get("command", []) + container.get("args", [])
    told += map(str, environment(container, objects).values())
    for path in re.findall(r"(?:^|(?<=[\s=\"',:]))/\w[\w./-]*", "\n".join(told), re.M):
        expect(path.startswith(directories), f"names {path}, which is in none of its volumes")


def check_client(workload, container, expected, users, objects):
    """A client has the address of each broker, trusts it, and has the settings of its program."""
    told, pods = environment(container, objects), template(workload)["spec"]
    for name, value in expected.items():
        expect_equal(name, told.get(name), value)
    for secret in find("secret", pods):
        expect(secret.get("items") == [{"key": "ca.crt", "path": "ca.crt"}], "sees more than the authority")
    expect_equal("the labelled version", labels(workload)[LABEL + "version"], programs.VERSION)
    programs.check_container(container, told, pods.get("terminationGracePeriodSeconds", 30), users)


def check_scaling(scaled, broker, namespace, objects):
    """KEDA scales a service by the queues that it consumes."""
    name = scaled["spec"]["scaleTargetRef"]["name"]
    workload = one("Deployment", name, objects)
    expect("replicas" not in workload["spec"], "an apply resets how many there are")
    told = environment(containers(workload)[0], objects)
    expect(told.get("REQUEST_RATE", "0") == "0", "is scaled by its own asking")
    triggers = find("metadata", scaled["spec"]["triggers"])
    asked = {(trigger["stream"], trigger["consumer"]) for trigger in triggers}
    queues = [each for each in find("x-jetstream", programs.CONTRACT) if "consumers" in each]
    lanes = {(each["stream"]["name"], lane["name"]) for each in queues for lane in each["consumers"]}
    expect_equal("queues", asked, {lane for lane in lanes if lane[1].split("-")[0] == name})
    host = f"{broker['spec']['serviceName']}.{namespace['metadata']['name']}.svc"
    endpoints = set(find("natsServerMonitoringEndpoint", triggers))
    expect_equal("endpoint", endpoints, {f"{host}:{ports(broker)['monitor']}"})


def connections(broker, objects):
    """Each connection that has to be allowed: its client, its server, its port and its protocol."""
    own = ports(broker)
    for workload in workloads(objects):
        yield from ((title(workload), "the DNS", 53, each) for each in ("UDP", "TCP"))
        if port := own.get("cluster" if workload is broker else "client"):
            yield title(workload), title(broker), port, "TCP"
    if of_kind(objects, "ScaledObject"):
        yield "KEDA", title(broker), own["monitor"], "TCP"
    for monitor in of_kind(objects, "PodMonitor"):
        for target in selected_by(monitor["spec"]["selector"], objects):
            if target is not broker:
                yield title(target), "the collector of traces", 4318, "TCP"
            for port in ports(target).keys() & set(find("port", monitor)):
                yield "Prometheus", title(target), ports(target)[port], "TCP"


def check_policies(namespace, needed, objects):
    """The policies of both ends allow each connection, and allow nothing else."""
    home = {NAMESPACE: namespace["metadata"]["name"]}
    pods = {title(each): home | labels(each) for each in workloads(objects)}
    policies = of_kind(objects, "NetworkPolicy")
    deny = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    expect(deny in [each["spec"] for each in policies], "no policy denies all by default")
    allowed = {"ingress": set(), "egress": set()}
    for policy, direction in product(policies, allowed):
        own = [each for each in pods if matches(policy["spec"]["podSelector"], pods[each])]
        for rule in policy["spec"].get(direction, []):
            for peer, port in product(rule.get("from") or rule["to"], rule["ports"]):
                there = peer.get("namespaceSelector", {"matchLabels": home})
                asked, all_pods = peer.get("podSelector", {}), (pods | OUTSIDERS).items()
                others = [name for name, these in all_pods if matches(there, these) and matches(asked, these)]
                ends = (own, others) if direction == "egress" else (others, own)
                through = set(product(*ends, [port["port"]], [port["protocol"]]))
                expect(through & needed, f"{title(policy)} lets through what nothing needs: {peer} {port}")
                allowed[direction] |= through
    for direction, end in (("egress", 0), ("ingress", 1)):
        missing = {each for each in needed if each[end] in pods} - allowed[direction]
        expect(not missing, f"no {direction} policy lets through {sorted(missing)}")


def check_apply(old, new):
    """One system applied over another works. If the other has another store, the API server refuses the apply: each
    workload differs in an immutable field, and all other objects that both have are equal, except CronJobs. An object
    that only one of them has stays behind, and is harmless, or docs/kubernetes.md says how to delete it."""
    refused = len({each["spec"]["replicas"] for each in of_kind(old + new, "StatefulSet")}) > 1
    there, comes = ({title(thing): thing for thing in system} for system in (old, new))
    for name in sorted(there.keys() & comes.keys()):
        before, after = there[name], comes[name]
        if after["kind"] in ("Deployment", "StatefulSet"):
            # The API server refuses a change of these fields.
            immutable = ("selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates")
            same = all(after["spec"].get(field) == before["spec"].get(field) for field in immutable)
            expect(same != refused, f"{name} would be {'changed' if refused else 'refused'}")
        elif refused and after["kind"] != "CronJob":
            expect(before == after, f"{name} would be changed")
    for name in sorted(there.keys() ^ comes.keys()):
        known = name.split()[0] in HARMLESS or name.lower().replace(" ", "/") in DELETED
        expect(known, f"{name} would stay behind")
