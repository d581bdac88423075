"""Whoever is given an address gets there, through every policy; and no policy lets in somebody who is not there."""

import re
import urllib.parse

from objects import containers, environment_of, labels_of, matches, of_kind, ports_of, selected_by, title, workloads
from refusal import Refused, expect, within

NAMESPACE = "decoupled"
# What stands behind the name of a Service, or nothing.
DOMAINS = ([], [NAMESPACE], [NAMESPACE, "svc"], [NAMESPACE, "svc", "cluster", "local"])
# Those outside of the namespace, as README.md names them.
DNS = ("kube-system", {"k8s-app": "kube-dns"})
KEDA = ("keda", {"app": "keda-operator"})
PROMETHEUS = ("monitoring", {"app.kubernetes.io/name": "prometheus"})


def addresses(container):
    """Each host and port that a container is told to speak to, with where it is told so."""
    for name, value in environment_of(container).items():
        if "://" in (value or ""):
            for url in value.split(","):
                try:
                    parts = urllib.parse.urlsplit(url)
                    host, port = parts.hostname, parts.port
                except ValueError as error:
                    raise Refused(f"{name} is no address: {error}") from None
                expect(host and port, f"{name} has no host, or no port: {url}")
                yield name, host, port


def behind(host, port, objects):
    """What has the pods behind an address, and the number among them where one alone is meant."""
    services = {thing["metadata"]["name"]: thing["spec"] for thing in of_kind(objects, "Service")}
    name, *domain = host.split(".")
    if name in services and domain in DOMAINS:
        ports = {each["port"]: each["targetPort"] for each in services[name]["ports"]}
        expect(port in ports, f"the Service {name} has no port {port}")
        selected = selected_by({"matchLabels": services[name]["selector"]}, objects)
        expect(len(selected) == 1, f"the Service {name} leads to {[title(each) for each in selected]}")
        [workload] = selected
        port = ports[port] if services[name].get("clusterIP") != "None" else port
        return workload, None, ports_of(workload).get(port, port)
    pod = re.fullmatch(r"(.+)-(\d+)", name)
    for workload in of_kind(objects, "StatefulSet"):
        known = (workload["metadata"]["name"], workload["spec"]["serviceName"])
        if pod and domain and known == (pod[1], domain[0]) and domain[1:] in DOMAINS and domain[0] in services:
            number = int(pod[2])
            replicas = workload["spec"]["replicas"]
            expect(number < replicas, f"there is no {host}, because {pod[1]} has {replicas} replicas")
            expect(port in ports_of(workload).values(), f"the pods of {title(workload)} have no port {port}")
            return workload, number, port
    raise Refused(f"there is no {host}, neither a Service nor a pod of a StatefulSet")


def lets_through(policies, direction, labels, other, port, protocol="TCP"):
    """Whether these policies let pods with such labels speak to another ("egress"), or hear it ("ingress")."""
    namespace, others = other
    for policy in policies:
        spec = policy["spec"]
        if direction.title() not in spec["policyTypes"] or not matches(spec["podSelector"], labels):
            continue
        for rule in spec.get(direction, []):
            ports = {(each["port"], each.get("protocol", "TCP")) for each in rule["ports"]}
            peers = rule["to" if direction == "egress" else "from"]
            if (port, protocol) in ports and any(is_peer(peer, namespace, others) for peer in peers):
                return True
    return False


def is_peer(peer, namespace, labels):
    expect(peer.keys() <= {"namespaceSelector", "podSelector"}, f"a policy names a peer by {sorted(peer)}")
    if "namespaceSelector" in peer:
        there = matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        there = namespace == NAMESPACE
    return there and matches(peer.get("podSelector", {}), labels)


def check_ways(objects, system):
    """Whoever is among these objects gets to wherever it is told, in the system."""
    policies = of_kind(objects, "NetworkPolicy") + of_kind(system, "NetworkPolicy")
    for workload in workloads(objects):
        for container in containers(workload):
            with within(f"{title(workload)}, container {container['name']}"):
                check_addresses(container, labels_of(workload), policies, system)


def check_addresses(container, labels, policies, system):
    numbers = {}
    for name, host, port in addresses(container):
        with within(name):
            target, number, port = behind(host, port, system)
            expect(port in ports_of(target).values(), f"the pods of {title(target)} have no port {port}")
            if number is not None:
                # Of the routes of a cluster each has a variable of its own.
                known, all_of_them = numbers.setdefault(re.sub(r"_\d+$", "", name), (set(), target["spec"]["replicas"]))
                known.add(number)
            there = (NAMESPACE, labels_of(target))
            allowed = lets_through(policies, "egress", labels, there, port)
            expect(allowed, f"no policy lets it speak to {host} on {port}")
            for protocol in ("UDP", "TCP"):
                allowed = lets_through(policies, "egress", labels, DNS, 53, protocol)
                expect(allowed, f"no policy lets it ask the DNS over {protocol}")
            here = (NAMESPACE, labels)
            allowed = lets_through(policies, "ingress", labels_of(target), here, port)
            expect(allowed, f"no policy of {title(target)} lets it in on {port}")
    for name, (known, replicas) in numbers.items():
        expect(len(known) == replicas, f"{name} names {len(known)} of {replicas} replicas")


def check_outsiders(objects):
    """KEDA and Prometheus get to what they ask."""
    policies = of_kind(objects, "NetworkPolicy")
    for thing in of_kind(objects, "ScaledObject"):
        for trigger in thing["spec"]["triggers"]:
            with within(title(thing)):
                endpoint = trigger["metadata"]["natsServerMonitoringEndpoint"]
                host, _, port = endpoint.partition(":")
                target, _, port = behind(host, int(port), objects)
                allowed = lets_through(policies, "ingress", labels_of(target), KEDA, port)
                expect(allowed, f"no policy of {title(target)} lets KEDA in on {port}")
    for thing in of_kind(objects, "PodMonitor"):
        for target in selected_by(thing["spec"]["selector"], objects):
            for endpoint in thing["spec"]["podMetricsEndpoints"]:
                with within(title(thing)):
                    port = ports_of(target).get(endpoint["port"])
                    expect(port, f"{title(target)} has no port {endpoint['port']}")
                    allowed = lets_through(policies, "ingress", labels_of(target), PROMETHEUS, port)
                    expect(allowed, f"no policy of {title(target)} lets Prometheus in on {port}")


def check_policies(objects):
    """Nobody speaks to anybody by default, and each workload has a policy of its own that says more."""
    policies = of_kind(objects, "NetworkPolicy")
    for policy in policies:
        with within(title(policy)):
            spec = policy["spec"]
            expect(spec.get("policyTypes"), "does not say in which direction it denies")
            rules = [(rule, rule.get("from")) for rule in spec.get("ingress", [])]
            rules += [(rule, rule.get("to")) for rule in spec.get("egress", [])]
            named = all(rule.get("ports") and peers for rule, peers in rules)
            expect(named, "has a rule for every peer, or for every port")
    for direction in ("Ingress", "Egress") if of_kind(objects, "Namespace") else ():
        denied = any(
            policy["spec"]["podSelector"] == {}
            and direction in policy["spec"]["policyTypes"]
            and not policy["spec"].get(direction.lower())
            for policy in policies
        )
        expect(denied, f"no policy denies {direction} by default")
    for workload in workloads(objects):
        own = [policy["spec"] for policy in policies if policy["spec"]["podSelector"]]
        own = [spec for spec in own if matches(spec["podSelector"], labels_of(workload))]
        directions = {direction for spec in own for direction in spec["policyTypes"]}
        both = directions == {"Ingress", "Egress"}
        expect(both, f"{title(workload)} has no NetworkPolicy of its own for both directions")


def check_peers(objects, everybody):
    """Whoever a policy names is there: in the system, as a Job of its own, or in another namespace."""
    for policy in of_kind(objects, "NetworkPolicy"):
        peers = [peer for rule in policy["spec"].get("ingress", []) for peer in rule["from"]]
        peers += [peer for rule in policy["spec"].get("egress", []) for peer in rule["to"]]
        for peer in peers:
            if "namespaceSelector" in peer:
                known = any(is_peer(peer, *outsider) for outsider in (DNS, KEDA, PROMETHEUS))
                expect(known, f"{title(policy)} names a namespace that nobody knows")
                continue
            for selector in each_choice(peer["podSelector"]):
                there = any(matches(selector, labels) for labels in everybody)
                expect(there, f"{title(policy)} names {selector['matchLabels']}, which no pod has")


def each_choice(selector):
    """A selector by values, as one selector for each of them."""
    choices = [selector.get("matchLabels", {})]
    for expression in selector.get("matchExpressions", []):
        expect(expression["operator"] == "In", f"a policy chooses its peers by {expression['operator']}")
        choices = [{**choice, expression["key"]: value} for choice in choices for value in expression["values"]]
    return [{"matchLabels": choice} for choice in choices]
