"""Clients speak TLS where the broker does, and its certificate has every name by which it is called."""

from broker import has_tls
from network import addresses, behind
from objects import containers, environment_of, of_kind, title, workloads
from pods import CERTIFICATE
from refusal import expect, within


def check(objects, system):
    certificates = [thing["spec"] for thing in of_kind(system, "Certificate")]
    names = [set(spec["dnsNames"]) for spec in certificates if spec["secretName"] == CERTIFICATE]
    for workload in workloads(objects):
        for container in containers(workload):
            with within(f"{title(workload)}, container {container['name']}"):
                environment = environment_of(container)
                if "NATS_URL" in environment:
                    trusts, needs = "NATS_CA" in environment, has_tls(system)
                    expect(trusts == needs, f"{'speaks' if trusts else 'does not speak'} TLS, unlike the broker")
                for variable, host, port in addresses(container):
                    target, *_ = behind(host, port, system)
                    if target["kind"] == "StatefulSet":
                        there = all(host in known for known in names)
                        expect(there, f"{variable} names {host}, which the certificate does not")
