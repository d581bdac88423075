"""What no tool knows of one rendered system: that its parts select, reach and trust each other, and nothing else."""

import re

import programs
from objects import containers, environment, expect, labels, matches, of_kind, ports, selected_by, template, title, within, workloads

# Who is let in from other namespaces, and where the DNS is.
KEDA = {"kubernetes.io/metadata.name": "keda", "app": "keda-operator"}
PROMETHEUS = {"kubernetes.io/metadata.name": "monitoring", "app.kubernetes.io/name": "prometheus"}
DNS = {"kubernetes.io/metadata.name": "kube-system", "k8s-app": "kube-dns"}
INSTALLATION = {f"app.kubernetes.io/{name}" for name in ("name", "instance")}
LABELS = INSTALLATION | {f"app.kubernetes.io/{name}" for name in ("version", "component", "part-of", "managed-by")}


def check(objects):
    namespace = of_kind(objects, "Namespace")[0]["metadata"]["name"]
    for thing in objects:
        with within(title(thing)):
            missing = LABELS - thing["metadata"].get("labels", {}).keys()
            expect(not missing, f"lacks the labels {sorted(missing)}")
            there = thing["kind"] == "Namespace" or thing["metadata"].get("namespace") == namespace
            expect(there, f"is not in the namespace {namespace}")
            check_selectors(thing, objects)
    for direction in ("Ingress", "Egress"):
        denied = [policy for policy in of_kind(objects, "NetworkPolicy") if policy["spec"]["podSelector"] == {}]
        denied = any(direction in each["spec"]["policyTypes"] and not each["spec"].get(direction.lower()) for each in denied)
        expect(denied, f"no policy denies {direction} by default")
    [broker] = of_kind(objects, "StatefulSet")
    with within(title(broker)):
        tls = programs.check_broker(broker, objects)
    for workload in workloads(objects):
        context = template(workload)["spec"]["securityContext"]
        expect(context["runAsNonRoot"] and context["runAsUser"] > 0, f"{title(workload)} may be root")
        for container in containers(workload):
            with within(f"{title(workload)}, container {container['name']}"):
                check_references(workload, container, objects)
                if workload is not broker:
                    check_client(workload, container, broker, tls, objects)
    check_drains(objects)
    check_outsiders(objects, broker, namespace)


def check_selectors(thing, objects):
    """Whatever selects pods selects some, of this installation alone, and names ports that are theirs."""
    spec, named = thing.get("spec", {}), []
    match thing["kind"]:
        case "Service":
            selector, named = {"matchLabels": spec["selector"]}, [port["targetPort"] for port in spec["ports"]]
        case "NetworkPolicy":
            selector, named = spec["podSelector"], [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
            for rule in spec.get("ingress", []) + spec.get("egress", []):
                for peer in rule.get("from", []) + rule.get("to", []):
                    check_peer(peer, objects)
            if selector == {}:
                return
        case "PodMonitor":
            selector, named = spec["selector"], [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]]
        case "PodDisruptionBudget" | "Deployment" | "StatefulSet":
            selector = spec["selector"]
        case "CronJob":
            expect(spec["suspend"], "runs by itself")
            return
        case _:
            return
    expect(selector["matchLabels"].keys() > INSTALLATION, "selects the pods of another installation, too")
    selected = selected_by(selector, objects)
    expect(selected, "selects nothing")
    expect(thing["kind"] not in ("Deployment", "StatefulSet") or selected == [thing], "selects the pods of another")
    expect(thing["kind"] != "Service" or len(selected) == 1, "selects the pods of several")
    known = {port for workload in selected for item in ports(workload).items() for port in item}
    expect(not set(named) - known, f"names the ports {sorted(set(named) - known)}, which no selected pod has")


def check_peer(peer, objects):
    """A peer of a policy is here, or one of those that are known elsewhere."""
    if "namespaceSelector" in peer:
        expect(any(is_peer(peer, each) for each in (KEDA, PROMETHEUS, DNS)), f"lets somebody in that nobody knows: {peer}")
    else:
        expect(peer["podSelector"]["matchLabels"].keys() > INSTALLATION, "lets in the pods of another installation")
        expect(selected_by(peer["podSelector"], objects), f"names {peer['podSelector']}, which no pod has")


def is_peer(peer, who):
    elsewhere = "kubernetes.io/metadata.name" in who
    there = matches(peer["namespaceSelector"], who) if "namespaceSelector" in peer else not elsewhere
    return there and matches(peer["podSelector"], who)


def lets_through(objects, direction, who, peer, port, protocol="TCP"):
    for policy in of_kind(objects, "NetworkPolicy"):
        if matches(policy["spec"]["podSelector"], who):
            for rule in policy["spec"].get(direction, []):
                if any((each["port"], each["protocol"]) == (port, protocol) for each in rule["ports"]):
                    if any(is_peer(each, peer) for each in rule["to" if direction == "egress" else "from"]):
                        return True
    return False


def check_references(workload, container, objects):
    """Whatever a pod mounts is there, and each path that it is told of is in a volume."""
    volumes = {volume["name"]: volume for volume in template(workload)["spec"].get("volumes", [])}
    volumes |= {claim["metadata"]["name"]: claim for claim in workload["spec"].get("volumeClaimTemplates", [])}
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", [])}
    expect(set(mounts.values()) <= volumes.keys(), "mounts what is no volume")
    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim", {}).get("claimName"):
            there = [thing["metadata"]["name"] for thing in of_kind(objects, "PersistentVolumeClaim")]
            expect(claim in there, f"names a PersistentVolumeClaim {claim} that is not there")
    told = container.get("command", []) + container.get("args", []) + list(environment(container, objects).values())
    for path in re.findall(r"(?:^|(?<=[\s=\"',:]))/\w[\w./-]*", "\n".join(map(str, told)), re.M):
        expect(any(path.startswith(mount + "/") for mount in mounts), f"names {path}, which is in none of its volumes")


def check_client(workload, container, broker, tls, objects):
    """A client gets to each broker, trusts it, and is what its program knows."""
    replicas, spec = broker["spec"]["replicas"], template(workload)["spec"]
    told = environment(container, objects)
    services = {thing["metadata"]["name"] for thing in of_kind(objects, "Service")}
    name, service = broker["metadata"]["name"], broker["spec"]["serviceName"]
    hosts = [f"{name}-{number}.{service}" for number in range(replicas)] if replicas > 1 else [service]
    expected = ",".join(f"nats://{host}:{ports(broker)['client']}" for host in hosts)
    expect(service in services and told["NATS_URL"] == expected, f"NATS_URL is not {expected}")
    expect(told["REPLICAS"] == str(replicas), f"REPLICAS is {told['REPLICAS']}, and there are {replicas} brokers")
    expect(("NATS_CA" in told) == tls, f"{'does not speak' if tls else 'speaks'} TLS, unlike the broker")
    if tls:
        secrets = [each["secret"] for each in spec["volumes"] if each["name"] == "nats-tls"]
        expect(secrets == [{"secretName": "nats-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}], "sees more than the authority")
        expect(told["NATS_CA"] == "/etc/nats-tls/ca.crt", "NATS_CA is not the authority")
        for certificate in of_kind(objects, "Certificate"):
            if certificate["spec"]["secretName"] == "nats-tls":
                missing = set(hosts) - set(certificate["spec"]["dnsNames"])
                expect(not missing, f"the certificate lacks {sorted(missing)}")
    check_way(labels(workload), broker, ports(broker)["client"], objects)
    grace = spec.get("terminationGracePeriodSeconds", 30)
    programs.check_container(container, told, grace, programs.users(broker, objects))
    template_version = labels(workload)["app.kubernetes.io/version"]
    expect(template_version == programs.version(), f"is of version {template_version}")


def check_way(who, target, port, objects):
    expect(lets_through(objects, "egress", who, labels(target), port), f"no policy lets it out to {title(target)} on {port}")
    expect(lets_through(objects, "ingress", labels(target), who, port), f"no policy of {title(target)} lets it in on {port}")
    for protocol in ("UDP", "TCP"):
        expect(lets_through(objects, "egress", who, DNS, 53, protocol), f"no policy lets it ask the DNS over {protocol}")


def check_drains(objects):
    """A drain of nodes takes one replica at a time of whatever there may be several of, and a rollout none."""
    budgets = [budget["spec"] for budget in of_kind(objects, "PodDisruptionBudget")]
    sides = [each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] in ("requestor", "generator")]
    for workload in sides + [each for each in of_kind(objects, "StatefulSet") if each["spec"]["replicas"] > 1]:
        own = [budget for budget in budgets if matches(budget["selector"], labels(workload))]
        expect([budget.get("maxUnavailable") for budget in own] == [1], f"{title(workload)} has no budget that lets one go")
        spread = template(workload)["spec"].get("topologySpreadConstraints", [])
        expect(spread, f"{title(workload)} is not spread over nodes")
        for each in spread:
            expect(matches(each["labelSelector"], labels(workload)), f"{title(workload)} is spread beside other pods")
    for side in sides:
        expect(side["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, f"{title(side)} is less than itself in a rollout")
    for workload in of_kind(objects, "Deployment", "StatefulSet"):
        expect({"minReadySeconds", "revisionHistoryLimit"} <= workload["spec"].keys(), f"{title(workload)} keeps to the defaults")


def check_outsiders(objects, broker, namespace):
    """KEDA and Prometheus get to what they ask, and KEDA asks for what the contract says."""
    for thing in of_kind(objects, "ScaledObject"):
        with within(title(thing)):
            target = thing["spec"]["scaleTargetRef"]["name"]
            [scaled] = [each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == target]
            expect("replicas" not in scaled["spec"], f"an apply sets how many of {target} there are")
            told = environment(containers(scaled)[0], objects)
            expect(told.get("REQUEST_RATE", "0") == "0", f"{target} is scaled by its own asking")
            triggers = [trigger["metadata"] for trigger in thing["spec"]["triggers"]]
            asked = {(trigger["stream"], trigger["consumer"]) for trigger in triggers}
            taken = {each for each in programs.consumers() if each[1] == target}
            expect(asked == taken, f"is scaled by {sorted(asked)}, and takes from {sorted(taken)}")
            endpoint = f"{broker['spec']['serviceName']}.{namespace}.svc:{ports(broker)['monitor']}"
            expect({trigger["natsServerMonitoringEndpoint"] for trigger in triggers} == {endpoint}, f"does not ask {endpoint}")
            expect(lets_through(objects, "ingress", labels(broker), KEDA, ports(broker)["monitor"]), "no policy lets KEDA in")
    for thing in of_kind(objects, "PodMonitor"):
        for target in selected_by(thing["spec"]["selector"], objects):
            for endpoint in thing["spec"]["podMetricsEndpoints"] if target["kind"] != "CronJob" else []:
                port = ports(target)[endpoint["port"]]
                expect(lets_through(objects, "ingress", labels(target), PROMETHEUS, port), f"no policy of {title(target)} lets Prometheus in")


# Fields that can never be changed, so that the API server refuses whatever has other ones.
IMMUTABLE = {"Deployment": ["selector"], "StatefulSet": ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"]}


def check_apply(old, new, refused):
    """One system applied over another works. Where it has another store it is refused before anything takes effect: what
    runs has other fields of these, what that uses has another name, and what else was there before is the same."""
    there = {title(thing): thing for thing in old}
    for thing in new:
        before, kind = there.get(title(thing)), thing["kind"]
        if kind in IMMUTABLE:
            same = all(thing["spec"].get(field) == before["spec"].get(field) for field in IMMUTABLE[kind])
            expect(same != refused, f"{title(thing)} would be {'changed' if refused else 'refused'}")
        elif refused and before and kind != "CronJob":
            expect(thing == before, f"{title(thing)} would be changed")
