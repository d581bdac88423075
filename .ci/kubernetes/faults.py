"""Shows that the checks refuse what they are there for: each fault is put into a copy of what is shipped, alone,
and has to be refused for what it is. A fault that cannot be put there any more is one that nobody looks for."""

import shutil

import compose
import render
import system
from refusal import Refused, expect, within

COMPOSE = "Compose"

# The file, what is in it, what is there in its place, what is rendered then, and what the refusal says.
FAULTS = [
    # Who may speak to whom.
    ("k8s/nats/network-policy.yaml", "audit, ", "",
     ".", "beside it: Job audit, container decoupled: NATS_URL: no policy of StatefulSet nats lets it in on 4222"),
    ("k8s/nats/network-policy.yaml", "requestor, ", "",
     ".", "no policy of StatefulSet nats lets it in on 4222"),
    ("k8s/nats/network-policy.yaml", "restore, gateway]", "restore, gateway, auditor]",
     ".", "'auditor'}, which no pod has"),
    ("k8s/gateway/network-policy.yaml", "        - podSelector:\n",
     "        - podSelector: {matchLabels: {app.kubernetes.io/component: page}}\n        - podSelector:\n",
     ".", "'page'}, which no pod has"),
    ("k8s/nats/network-policy.yaml", "- port: 4222", "- port: 8222",
     ".", "lets it in on 4222"),
    ("k8s/requestor/network-policy.yaml", "- port: 4222", "- port: 4223",
     ".", "no policy lets it speak to nats on 4222"),
    ("k8s/requestor/network-policy.yaml", "component: broker", "component: nats",
     ".", "no policy lets it speak to nats on 4222"),
    ("k8s/requestor/network-policy.yaml", "        - port: 53\n          protocol: UDP\n", "",
     ".", "no policy lets it ask the DNS over UDP"),
    ("k8s/requestor/network-policy.yaml", "kube-dns", "dns",
     ".", "no policy lets it ask the DNS over UDP"),
    ("k8s/requestor/kustomization.yaml", "  - network-policy.yaml\n", "",
     ".", "Deployment requestor has no NetworkPolicy of its own for both directions"),
    ("k8s/requestor/network-policy.yaml", "[Ingress, Egress]", "[Egress]",
     ".", "has no NetworkPolicy of its own for both directions"),
    ("k8s/audit/network-policy.yaml", "- port: 4222", "- port: 4223",
     "audit", "no policy lets it speak to nats on 4222"),
    ("k8s/base/kustomization.yaml", "  - default-deny.yaml\n", "",
     ".", "no policy denies Ingress by default"),
    ("k8s/base/default-deny.yaml", "[Ingress, Egress]", "[Ingress]",
     ".", "no policy denies Egress by default"),
    ("k8s/base/default-deny.yaml", "podSelector: {}", "podSelector: {}\n  egress: [{}]",
     ".", "has a rule for every peer"),
    ("k8s/components/ha/network-policy.yaml", "- port: 6222", "- port: 6223",
     "overlays/ha", "names the ports [6223], which no selected pod has"),
    ("k8s/components/ha/kustomization.yaml", "  - network-policy.yaml\n", "",
     "overlays/ha", "ROUTE_0: no policy lets it speak to nats-0.nats on 6222"),
    ("k8s/components/autoscale/network-policy.yaml", "- port: 8222", "- port: 4222",
     "overlays/autoscale", "no policy of StatefulSet nats lets KEDA in on 8222"),
    ("k8s/components/autoscale/network-policy.yaml", "name: keda", "name: default",
     "overlays/autoscale", "names a namespace that nobody knows"),
    ("k8s/components/monitoring/network-policy.yaml", "generator, gateway, declare, broker", "gateway, declare, broker",
     "overlays/monitoring", "no policy of Deployment generator lets Prometheus in on 8080"),
    ("k8s/components/monitoring/exporter.yaml", "-port=7777", "-port=7778",
     "overlays/monitoring", "is told of port 7778, which is not there"),
    ("k8s/components/monitoring/exporter.yaml", "localhost:8222", "localhost:8223",
     "overlays/monitoring", "is told of port 8223, which is not there"),
    ("k8s/components/monitoring/network-policy.yaml", "gateway, declare, broker", "gateway, broker",
     "overlays/monitoring", "no policy of Deployment declare lets Prometheus in on 8080"),
    ("k8s/gateway/service.yaml", "targetPort: http", "targetPort: page",
     ".", "Service gateway: names the ports ['page'], which no selected pod has"),
    ("k8s/gateway/deployment.yaml", "value: 0.0.0.0:8000", "value: 0.0.0.0:8001",
     ".", "it listens on [8001, 8080], and is said to on [8000, 8080]"),
    # Who a pod may be, and what keeps it there.
    ("k8s/base/namespace.yaml", "enforce: restricted", "enforce: privileged",
     ".", "does not enforce the restricted standard, but privileged"),
    ("k8s/requestor/deployment.yaml", "runAsUser: 65532", "runAsUser: 0",
     ".", "Deployment requestor: container requestor: may be root"),
    ("k8s/requestor/deployment.yaml", "allowPrivilegeEscalation: false",
     "runAsUser: 0\n            allowPrivilegeEscalation: false",
     ".", "Deployment requestor: container requestor: may be root"),
    ("k8s/requestor/deployment.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false",
     ".", "may write into its image"),
    ("k8s/requestor/kustomization.yaml", "  - disruption-budget.yaml\n", "",
     ".", "Deployment requestor has 0 disruption budgets"),
    ("k8s/requestor/disruption-budget.yaml", "maxUnavailable: 1", "maxUnavailable: 0",
     ".", "does not let go of one at a time"),
    ("k8s/components/ha/kustomization.yaml", "  - disruption-budget.yaml\n", "",
     "overlays/ha", "StatefulSet nats has 0 disruption budgets"),
    ("k8s/requestor/deployment.yaml", "maxUnavailable: 0", "maxUnavailable: 1",
     ".", "Deployment requestor is less than itself in a rollout"),
    # Where the broker is.
    ("k8s/requestor/deployment.yaml", "nats://nats:4222", "nats://broker:4222",
     ".", "NATS_URL: there is no broker, neither a Service nor a pod of a StatefulSet"),
    ("k8s/requestor/deployment.yaml", "nats://nats:4222", "nats://nats:4223",
     ".", "NATS_URL: the Service nats has no port 4223"),
    ("k8s/nats/service.yaml", "port: 4222", "port: 4221",
     ".", "NATS_URL: the Service nats has no port 4222"),
    ("k8s/components/ha/three-brokers.yaml", "nats-2.nats", "nats-3.nats",
     "overlays/ha", "there is no nats-3.nats, because nats has 3 replicas"),
    ("k8s/components/ha/three-brokers.yaml", ",nats://nats-2.nats:4222", "",
     "overlays/ha", "NATS_URL names 2 of 3 replicas"),
    ("k8s/audit/job.yaml", "nats://nats:4222", "nats://elsewhere:1",
     "audit", "NATS_URL: there is no elsewhere, neither"),
    ("k8s/components/ha/statefulset.yaml", "replicas: 3", "replicas: 5",
     "overlays/ha", "and there are 5 of it"),
    ("k8s/components/ha/three-brokers.yaml", 'value: "3"', 'value: "2"',
     "overlays/ha", "REPLICAS is 2, and there are 3 brokers"),
    ("k8s/overlays/restore-ha/kustomization.yaml", "  - ../../components/three-copies\n", "",
     "overlays/restore-ha", "REPLICAS is 1, and there are 3 brokers"),
    ("k8s/components/at-rest/kustomization.yaml", "      kind: Deployment\n",
     "      kind: Deployment\n      labelSelector: app.kubernetes.io/component notin (declare)\n",
     "overlays/ha-at-rest", "Deployment declare does not rest"),
    # Who it is.
    ("k8s/credentials/own/kustomization.yaml", "decoupled/credentials: own", "decoupled/credentials: local",
     "overlays/own-credentials", "StatefulSet nats does not say which credentials it has"),
    ("k8s/credentials/local/kustomization.yaml", "kind: StatefulSet|Deployment", "kind: StatefulSet",
     ".", "Deployment declare does not say which credentials it has"),
    # What the broker reads.
    ("k8s/nats/nats.conf", "  sync_interval: always\n", "",
     ".", "sync_interval is not always"),
    ("k8s/nats/nats.conf", "sync_interval: always", 'sync_interval: "2m"',
     ".", "sync_interval is not always"),
    ("k8s/nats/nats.conf", "jetstream {", "jetstream {{{",
     ".", "the broker refuses its configuration"),
    ("k8s/nats/nats.conf", "store_dir: /data", "store_dir: /tmp",
     ".", "names /tmp, which is in none of its volumes"),
    ("k8s/nats/nats.conf", "store_dir: /data", "store_dir: /run/nats",
     ".", "the broker stores in /run/nats/jetstream, which does not last"),
    ("k8s/nats/nats.conf", "listen: 0.0.0.0:4222", "listen: 0.0.0.0:4223",
     ".", "it listens on [4223, 8222], and is said to on [4222, 8222]"),
    ("k8s/nats/kubernetes.conf", "include tls.conf", "include certificates.conf",
     ".", "the broker refuses its configuration"),
    ("k8s/components/ha/cluster.conf", "routes: [", "routes: {",
     "overlays/ha", "the broker refuses its configuration"),
    ("k8s/components/ha/cluster.conf", ", $ROUTE_2", "",
     "overlays/ha", "the broker is given"),
    ("k8s/components/tls/cluster-tls.conf", "verify: true", "verify: perhaps",
     "overlays/production", "the broker refuses its configuration"),
    ("k8s/components/tls/kustomization.yaml", "      - cluster-tls.conf\n", "",
     "overlays/production", "it asks clients for TLS, and other brokers for no certificate"),
    ("k8s/components/tls/tls.conf", "key_file", "key_fil",
     "overlays/tls", "the broker refuses its configuration"),
    # What lies where.
    ("k8s/nats/statefulset.yaml", "ldm=/run/nats/nats.pid", "ldm=/run/nats/wrong.pid",
     ".", "names /run/nats/wrong.pid, which no configuration names"),
    ("k8s/nats/kubernetes.conf", "pid_file: /run/nats/nats.pid", "pid_file: /run/nats/broker.pid",
     ".", "names /run/nats/nats.pid, which no configuration names"),
    ("k8s/components/tls/statefulset.yaml", "reload=/run/nats/nats.pid", "reload=/var/run/nats.pid",
     "overlays/tls", "names /var/run/nats.pid, which is in none of its volumes"),
    ("k8s/nats/statefulset.yaml", "/etc/nats/kubernetes.conf", "/etc/nats/broker.conf",
     ".", "names /etc/nats/broker.conf, which is not there"),
    ("k8s/components/tls-clients/authority.yaml", "value: /etc/nats-tls/ca.crt", "value: /etc/nats-tls/authority.crt",
     "overlays/tls", "names /etc/nats-tls/authority.crt, which is not there"),
    ("k8s/components/tls-clients/authority.yaml", "key: ca.crt", "key: authority.crt",
     "overlays/audit-tls", "mounts authority.crt of the Secret nats-tls, where it is not"),
    ("k8s/components/tls/tls.conf", "cert_file: /etc/nats-tls/tls.crt", "cert_file: /etc/nats-tls/nats.crt",
     "overlays/tls", "names /etc/nats-tls/nats.crt, which is not there"),
    ("k8s/components/cert-manager/certificate.yaml", "    - nats-2.nats\n", "",
     "overlays/production", "names nats-2.nats, which the certificate does not"),
    ("k8s/components/tls/kustomization.yaml", "components:\n  - ../tls-clients\n", "",
     "overlays/tls", "does not speak TLS, unlike the broker"),
    # By what KEDA scales.
    ("k8s/components/autoscale/requestor.yaml", "consumer: requestor", "consumer: generator",
     "overlays/autoscale", "by [('RESPONSES', 'generator')], and requestor takes from [('RESPONSES', 'requestor')]"),
    ("k8s/components/autoscale/generator.yaml", "stream: ACKNOWLEDGMENTS", "stream: REQUESTS",
     "overlays/autoscale", "and generator takes from [('ACKNOWLEDGMENTS', 'generator')"),
    # What the programs know.
    ("k8s/requestor/deployment.yaml", "name: DRAIN_TIMEOUT", "name: DRAIN_TIME",
     ".", "requestor  knows no setting DRAIN_TIME"),
    ("k8s/requestor/deployment.yaml", "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 20",
     ".", "it has 20 s to end, and takes up to 20"),
    ("k8s/requestor/deployment.yaml", "/readyz", "/ready",
     ".", "requestor has no /ready"),
    ("k8s/declare/deployment.yaml", "/readyz", "/ready",
     ".", "decoupled has no /ready"),
    ("k8s/declare/deployment.yaml", "name: ADMIN_ADDR", "name: ADMIN",
     ".", "decoupled declare knows no setting ADMIN"),
    ("k8s/declare/deployment.yaml", "[declare, --watch]", "[declare, --for-ever]",
     ".", "decoupled knows no --for-ever"),
    # Compose, and the images.
    ("docker-compose.yml", "restart: unless-stopped", 'restart: "no"',
     COMPOSE, "is not restarted unless-stopped"),
    ("docker-compose.yml", "/etc/nats/nats.conf]\n    restart: unless-stopped\n", "/etc/nats/nats.conf]\n",
     COMPOSE, "nats: is not restarted unless-stopped"),
    ("docker-compose.yml", "profiles: [tools]\n", "profiles: [tools]\n    restart: always\n",
     COMPOSE, "cli: is not restarted no"),
    ("docker-compose.yml", "/usr/local/bin/decoupled, healthcheck]", "/usr/local/bin/decoupled, audit]",
     COMPOSE, "declare: its health is not asked by"),
    ("docker-compose.yml", "[declare, --watch]", "[declare, --for-ever]",
     COMPOSE, "declare: decoupled knows no --for-ever"),
    ("docker-compose.yml", "nats://nats:4222", "nats://nats:4223",
     COMPOSE, "NATS_URL names port 4223, where nats does not listen"),
    ("docker-compose.yml", ":-8080}:8000", ":-8080}:8080",
     COMPOSE, "where nothing listens"),
    ("docker-compose.yml", "REPLAY_PASSWORD: ${REPLAYER_PASSWORD:-local-use-only-replayer}",
     "REPLAY_PASSWORD: replayer",
     COMPOSE, "the password of replayer is not the broker's"),
    ("docker-compose.yml", "queues:/data", "queues:/store",
     COMPOSE, "names /data, which is in none of its volumes"),
    ("k8s/nats/nats.conf", "sync_interval: always", 'sync_interval: "2m"',
     COMPOSE, "sync_interval is not always"),
    ("Dockerfile", "USER 65532:65532\n", "",
     COMPOSE, "runs as None, and not as 65532:65532"),
    ("Dockerfile", "COPY requestor requestor\nCOPY gateway gateway\n", "COPY gateway gateway\n",
     COMPOSE, "gateway is built from"),
    ("Dockerfile", "FROM service AS generator\n", "FROM service AS generator\nUSER root\n",
     COMPOSE, "generator runs as root, and not as 65532:65532"),
]


def check(root, copy, systems, jobs, everybody):
    """Tries every fault on a copy of the tree whose kustomizations have rendered this; says how many there are."""
    shutil.rmtree(copy, ignore_errors=True)
    render.copy(copy, root, passwords=True)
    for name, old, new, rendered, words in FAULTS:
        file = copy / name
        text = file.read_text()
        with within(f"the fault {new.strip()!r} for {old.strip()!r} in {name}"):
            expect(old in text, "cannot be put there any more")
            file.write_text(text.replace(old, new, 1))
            refusal = refusal_of(copy, rendered, systems, jobs, everybody)
            expect(refusal, "is not refused")
            expect(words in refusal, f"is refused for something else: {refusal}")
        file.write_text(text)
    return len(FAULTS)


def refusal_of(root, rendered, systems, jobs, everybody):
    try:
        if rendered == COMPOSE:
            compose.check(root)
            return None
        objects = system.render_one(root, rendered)
        if system.is_job(rendered):
            system.check_job(rendered, objects, systems, jobs)
        else:
            system.check(rendered, objects, jobs, everybody)
        return None
    except Refused as refused:
        return str(refused)
