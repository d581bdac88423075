"""Faults that the checks have to refuse, each for what it is."""

POLICIES, SERVICE, NATS, HA = "base/network-policies.yaml", "base/every-service.yaml", "nats/nats.yaml", "components/ha/"
KEDA, PROMETHEUS = "components/autoscale/scaling.yaml", "components/monitoring/monitors.yaml"

# What is rendered, the file below k8s/, what is in it, what is there in its place, and what the refusal says.
FAULTS = [
    # Who may speak to whom.
    ("k8s", POLICIES, "[Ingress, Egress]", "[Ingress]", "no policy denies Egress by default"),
    ("k8s", POLICIES, "port: 4222", "port: 4223", "no policy lets it out to StatefulSet nats on 4222"),
    ("k8s", POLICIES, "protocol: UDP", "protocol: SCTP", "no policy lets it ask the DNS over UDP"),
    ("k8s", POLICIES, "kube-dns", "dns", "lets somebody in that nobody knows"),
    ("k8s", POLICIES, "matchLabels: {app.kubernetes.io/component: broker}\n      p", "matchLabels: {app.kubernetes.io/component: brokers}\n      p", "which no pod has"),
    ("k8s", SERVICE, "labels: {decoupled/nats-client", "labels: {decoupled/nats-clients", "no policy lets it out"),
    ("ha", HA + "cluster.yaml", "port: 6222", "port: 6223", "names the ports [6223]"),
    ("autoscale", KEDA, "port: 8222, p", "port: 4222, p", "no policy lets KEDA in"),
    ("monitoring", PROMETHEUS, "port: 7777", "port: 8222", "lets Prometheus in"),
    # Which pods are meant.
    ("k8s", "components/common/kustomization.yaml", "    includeSelectors: true\n", "    includeTemplates: true\n", "selects the pods of another installation"),
    ("k8s", "base/gateway.yaml", "targetPort: http", "targetPort: page", "names the ports ['page']"),
    ("k8s", "base/generator.yaml", "selector:\n    matchLabels: {app.kubernetes.io/component: generator}\n  t", "selector:\n    matchLabels: {app.kubernetes.io/component: requestor}\n  t", "selects the pods of another"),
    ("k8s", "base/every-job.yaml", "suspend: true", "suspend: false", "runs by itself"),
    ("k8s", SERVICE, "minReadySeconds: 5\n  ", "", "keeps to the defaults"),
    ("k8s", "base/requestor.yaml", "maxUnavailable: 1", "maxUnavailable: 0", "no budget that lets one go"),
    ("ha", HA + "kustomization.yaml", "resources:\n  - cluster.yaml\n", "", "no budget that lets one go"),
    ("k8s", "base/requestor.yaml", "{maxUnavailable: 0}", "{maxUnavailable: 1}", "is less than itself in a rollout"),
    ("k8s", SERVICE, "runAsUser: 65532", "runAsUser: 0", "may be root"),
    # Where the broker is, and whether it is that.
    ("k8s", "base/kustomization.yaml", "nats://nats:4222", "nats://nats:4223", "NATS_URL is not nats://nats:4222"),
    ("ha", HA + "kustomization.yaml", "nats-2.nats", "nats-3.nats", "NATS_URL is not"),
    ("ha", HA + "kustomization.yaml", "REPLICAS=3", "REPLICAS=2", "REPLICAS is 2, and there are 3 brokers"),
    ("ha", HA + "statefulset.yaml", "replicas: 3", "replicas: 5", "and there are 5 of it"),
    ("tls", "components/tls/kustomization.yaml", "NATS_CA=", "NATS_CERT=", "does not speak TLS"),
    ("tls", "components/tls/kustomization.yaml", "items: [{key: ca.crt", "items: [{key: tls.key", "sees more than the authority"),
    ("production", "components/cert-manager/certificates.yaml", ", nats-2.nats", "", "the certificate lacks ['nats-2.nats']"),
    ("autoscale", "components/common/kustomization.yaml", "index: 1", "index: 2", "does not ask nats.decoupled.svc:8222"),
    ("autoscale", KEDA, "stream: ACKNOWLEDGMENTS", "stream: REQUESTS", "and takes from [('ACKNOWLEDGMENTS', 'generator')"),
    ("autoscale", KEDA, "consumer: requestor", "consumer: generator", "and takes from [('RESPONSES', 'requestor')]"),
    ("autoscale", "components/autoscale/kustomization.yaml", 'value: "0"', 'value: "1"', "is scaled by its own asking"),
    ("autoscale", KEDA, "cooldownPeriod", "coolDownPeriod", "Additional properties are not allowed"),
    ("k8s", "base/generator.yaml", "replicas: 2", "replica: 2", "Additional properties are not allowed"),
    # What the broker reads.
    ("k8s", "nats/nats.conf", "sync_interval: always", 'sync_interval: "2m"', "sync_interval is not always"),
    ("k8s", "nats/nats.conf", "jetstream {", "jetstream {{{", "the broker refuses its configuration"),
    ("k8s", "nats/nats.conf", "store_dir: /data", "store_dir: /tmp", "stores in /tmp, which does not last"),
    ("k8s", "nats/nats.conf", "listen: 0.0.0.0:4222", "listen: 0.0.0.0:4223", "it listens on [4223, 8222]"),
    ("k8s", NATS, "ldm=/run/nats/nats.pid", "ldm=/run/nats/wrong.pid", "is signalled by /run/nats/wrong.pid"),
    ("k8s", NATS, "GATEWAY_PASSWORD", "VIEWER_PASSWORD", "the broker refuses its configuration"),
    ("ha", HA + "cluster.conf", ", $ROUTE_2", "", "the broker is given"),
    ("production", "components/tls/cluster-tls.conf", "verify: true", "verify: false", "other brokers for no certificate"),
    # What the programs know.
    ("k8s", "base/requestor.yaml", "DRAIN_TIMEOUT", "DRAIN_TIME", "knows no setting DRAIN_TIME"),
    ("k8s", "base/requestor.yaml", 'REQUEST_RATE, value: "1"', "REQUEST_RATE, value: many", "refuses a value"),
    ("k8s", SERVICE, "PeriodSeconds: 30", "PeriodSeconds: 20", "takes up to 20 s to drain"),
    ("k8s", SERVICE, "/readyz", "/ready", "has no /ready"),
    ("k8s", "base/declare.yaml", "--watch", "--for-ever", "knows no --for-ever"),
    ("k8s", "base/declare.yaml", "cli:0.1.0", "cli:0.2.0", "the image is of version 0.2.0"),
    ("k8s", "base/gateway.yaml", "value: _INBOX_gateway", "value: _INBOX_viewer", "the inbox is not that of gateway"),
    ("k8s", "base/gateway.yaml", "secretKeyRef: {name: nats-gateway", "secretKeyRef: {name: nats-backup", "the password is not that of gateway"),
    ("k8s", "base/jobs.yaml", "mountPath: /backups}", "mountPath: /backup}", "which is in none of its volumes"),
    ("k8s", "base/jobs.yaml", "[audit, --wait", "[judge, --wait", "is nothing that the program can do"),
    # What an apply over something else would change.
    ("ha over k8s", HA + "kustomization.yaml", "value: cluster}\n  - target: {kind: Dep", "value: data}\n  - target: {kind: Dep", "StatefulSet nats would be changed"),
    ("ha over k8s", HA + "kustomization.yaml", "/spec/selector/matchLabels/", "/metadata/labels/", "Deployment declare would be changed"),
    ("ha over k8s", HA + "kustomization.yaml", "- path: statefulset.yaml", "- path: statefulset.yaml\n  - patch: '[{\"op\": \"remove\", \"path\": \"/spec/ports/1\"}]'\n    target: {kind: Service, name: nats}", "Service nats would be changed"),
    ("tls over k8s", "components/tls/statefulset.yaml", "spec:\n  template", "spec:\n  podManagementPolicy: OrderedReady\n  template", "StatefulSet nats would be refused"),
    # Compose, and the images.
    ("Compose", "../docker-compose.yml", "restart: unless-stopped", 'restart: "no"', "is not restarted unless-stopped"),
    ("Compose", "../docker-compose.yml", "profiles: [tools]\n", "profiles: [tools]\n    restart: always\n", "is not restarted no"),
    ("Compose", "../docker-compose.yml", "decoupled, healthcheck]", "decoupled, audit]", "has another health check"),
    ("Compose", "../docker-compose.yml", "nats://nats:4222", "nats://nats:4223", "is not where the broker listens"),
    ("Compose", "../docker-compose.yml", ":-8080}:8000", ":-8080}:8001", "and is said to on [8001]"),
    ("Compose", "../docker-compose.yml", "queues:/data", "queues:/store", "which is none of its volumes"),
    ("Compose", "../docker-compose.yml", "REPLAY_USER: replayer", "REPLAY_USER: backup", "the inbox is not that of backup"),
    ("Compose", "../Dockerfile", "local/bin/generator\"]", "bin/generator\"]", "is not in the image"),
]

