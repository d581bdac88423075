"""Applies k8s/ to the cluster that kubectl talks to, scales, replaces and deletes each part of it under load, and
asks for the verdict. `cluster` beside this file calls it."""

import contextlib
import json
import pathlib
import re
import subprocess
import tempfile
import time

from steps import LIMIT, answer, ask_and_follow, eventually, expect, run, step

NAMESPACE = "decoupled"
SERVICES = ("requestor", "generator")
# The rate of each requestor, in requests a second.
RATE = 50

# A pod that the restricted Pod Security Standard forbids.
PRIVILEGED = """
apiVersion: v1
kind: Pod
metadata: {name: privileged}
spec:
  containers:
    - {name: cli, image: "decoupled/cli:0.2.0", securityContext: {privileged: true}}
"""

# A pod with a password that keeps to the standard, but that no network policy selects.
STRANGER = """
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: cli
      image: decoupled/cli:0.2.0
      imagePullPolicy: IfNotPresent
      args: [audit]
      env:
        - {name: NATS_URL, value: "nats://%s:4222"}
        - {name: NATS_USER, value: auditor}
        - {name: NATS_PASSWORD, value: local-use-only-auditor}
        - {name: NATS_INBOX_PREFIX, value: _INBOX_auditor}
      securityContext:
        {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
"""

# The system with three brokers, and the existing passwords.
CLUSTER = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../k8s/base]
components: [../../k8s/credentials/local, ../../k8s/components/ha, ../../k8s/components/common]
"""


def main():
    there = kubectl("get", "namespace", NAMESPACE, "--ignore-not-found")
    expect(not there, f"the cluster has no namespace {NAMESPACE}: this makes it, and deletes it at the end")
    try:
        walk()
    except BaseException:
        show_what_is_there()
        raise
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", check=False)


def walk():
    step("apply everything, and wait until all of it is ready")
    begun = time.monotonic()
    kubectl("apply", "-k", "k8s")
    for workload in ("statefulset/nats", *(f"deployment/{name}" for name in ("declare", *SERVICES, "gateway"))):
        rolled_out(workload)
    print(f"  after {time.monotonic() - begun:.0f} s")
    with forwarded("gateway", 8080) as gateway:
        ask_and_follow(gateway)
        walk_under_load(gateway)


def walk_under_load(gateway):
    step("a pod with privileges is refused, and one that no policy selects reaches no service")
    refusal = kubectl(*inside("create", "--dry-run=server", "--filename", "-"), stdin=PRIVILEGED, check=False, errors=True)
    expect('violates PodSecurity "restricted' in refusal, f"a privileged pod is refused: {refusal}")
    # By its address, so that a failure is not one of DNS.
    kubectl(*inside("create", "--filename", "-"), stdin=STRANGER % pods("broker")[0]["status"]["podIP"])
    eventually("the stranger ends", lambda: found("pod/stranger")["status"]["phase"] in ("Failed", "Succeeded"))
    said = kubectl(*inside("logs", "stranger"))
    expect("cannot connect to the broker" in said, f"this cluster enforces network policies: {said}")

    step("put it under load, and stop the generators: requests wait, and the requestor goes on")
    ask_for(RATE)
    requestors = uids("requestor")
    scale("generator", 0)
    before = waiting(gateway)
    # This takes longer than failing probes need to mark a pod as not ready.
    eventually("requests wait", lambda: waiting(gateway) >= before + 10 * RATE)
    expect(uids("requestor") == requestors, "the requestor was not touched")
    expect(are_ready(1, "requestor"), "the requestor is ready without a generator")

    step("start them: the queues drain")
    scale("generator", 2)
    drained(gateway)
    expect(uids("requestor") == requestors, "the requestor was not touched")

    for service in SERVICES:
        step(f"scale the {service}s from one to five, to none and to two")
        for replicas in (1, 5, 0, 2):
            scale(service, replicas)

    step("replace both services at once, and leave the broker alone")
    before, brokers = uids(*SERVICES), uids("broker")
    kubectl(*inside("rollout", "restart", *(f"deployment/{service}" for service in SERVICES)))
    for service in SERVICES:
        rolled_out(f"deployment/{service}")
    expect(before.isdisjoint(uids(*SERVICES)), "every replica is a new one")
    expect(uids("broker") == brokers, "the broker is the same")

    step("delete the broker's pod: it comes back, and all goes on")
    kubectl(*inside("delete", "pod", "nats-0"))
    rolled_out("statefulset/nats")
    ask_and_follow(gateway)
    eventually("both services are ready again", lambda: are_ready(4, *SERVICES))
    expect(sum(map(restarts, pods("declare", *SERVICES, "gateway"))) == 0, "no service had to be restarted for that")

    step("apply a cluster of brokers over the single one: it is refused, and nothing that runs is changed")
    running = ("declare", *SERVICES, "gateway", "broker")
    before = uids(*running)
    cluster = pathlib.Path("target/cluster-of-brokers")
    cluster.mkdir(parents=True, exist_ok=True)
    (cluster / "kustomization.yaml").write_text(CLUSTER)
    said = kubectl("apply", "--kustomize", cluster, check=False, errors=True)
    for name in ("nats", "declare", *SERVICES, "gateway"):
        expect(f'"{name}" is invalid' in said, f"{name} is refused: {said}")
    expect(uids(*running) == before, "nothing was touched")
    # Until then, its Jobs are those of the cluster.
    kubectl("apply", "-k", "k8s")

    step("ask for no more, and for the verdict")
    ask_for(0)
    drained(gateway)
    kubectl(*inside("create", "job", "--from=cronjob/audit", "audit-1"))
    # The first condition of a Job is that it has ended, in either way.
    kubectl(*inside("wait", "--for=jsonpath={.status.conditions[0].status}=True", f"--timeout={LIMIT}s", "job/audit-1"))
    eventually("the audit ends", lambda: conditions("job/audit-1") & {"Complete", "Failed"})
    # The last pod, because an earlier one may not have reached the broker.
    last = max(pods("audit"), key=lambda pod: pod["metadata"]["creationTimestamp"])["metadata"]["name"]
    said = kubectl(*inside("logs", last))
    print(said)
    expect("Complete" in conditions("job/audit-1"), "nothing is lost, and nothing doubled")
    verdict = {name: int(number) for name, number in re.findall(r"^ *([a-z-]+) +(\d+)", said, re.M)}
    expect(verdict["requested"] == verdict["complete"] > 1000, "each accepted request is complete")


def ask_for(rate):
    """Sets the rate of each requestor, in requests a second."""
    kubectl(*inside("set", "env", "deployment/requestor", f"REQUEST_RATE={rate}"))
    rolled_out("deployment/requestor")


def scale(service, replicas):
    kubectl(*inside("scale", f"deployment/{service}", f"--replicas={replicas}"))
    if replicas == 0:
        eventually(f"there is no {service}", lambda: not pods(service, going=True))
    else:
        eventually(f"there are {replicas} of the {service}", lambda: are_ready(replicas, service))


def rolled_out(workload):
    kubectl(*inside("rollout", "status", workload, f"--timeout={LIMIT}s"))


def drained(gateway):
    # Under load, some messages are always on their way.
    eventually("the queues drain", lambda: waiting(gateway) < RATE)


def waiting(gateway):
    """The number of messages that wait in the three queues, by the last successful snapshot of the page."""
    def look():
        points = answer(f"{gateway}/api/history")
        return points and points[-1]["queues"]

    return sum(waits for waits, *_ in eventually("the page sees the queues", look))


def pods(*components, going=False):
    """The pods of these components; the stopping ones only on demand."""
    selector = f"app.kubernetes.io/component in ({','.join(components)})"
    there = json.loads(kubectl(*inside("get", "pods", "--selector", selector, "--output", "json")))["items"]
    return [pod for pod in there if going or "deletionTimestamp" not in pod["metadata"]]


def uids(*components):
    return {pod["metadata"]["uid"] for pod in pods(*components)}


def are_ready(replicas, *components):
    """Whether there are this many, and all of them are ready."""
    there = pods(*components)
    return len(there) == replicas and all("Ready" in true_conditions(pod) for pod in there)


def restarts(pod):
    return sum(container["restartCount"] for container in pod["status"].get("containerStatuses", []))


def conditions(name):
    return true_conditions(found(name))


def true_conditions(thing):
    # A pod that the controller has not handled yet has none.
    held = thing["status"].get("conditions", [])
    return {condition["type"] for condition in held if condition["status"] == "True"}


def found(name):
    return json.loads(kubectl(*inside("get", name, "--output", "json")))


def show_what_is_there():
    everything = "app.kubernetes.io/name"
    for words in (
        ["get", "all", "--output", "wide"],
        ["get", "events", "--sort-by", ".lastTimestamp"],
        ["logs", "--selector", everything, "--prefix", "--tail", "40", "--ignore-errors"],
        ["logs", "stranger"],
    ):
        print(kubectl(*inside(*words), check=False, errors=True))


@contextlib.contextmanager
def forwarded(service, port):
    """The address of a Service from here."""
    words = ["kubectl", *inside("port-forward", "--address", "127.0.0.1", f"service/{service}", f":{port}")]
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as forwarding:
        def local():
            said.seek(0)
            words = said.read()
            expect(forwarding.poll() is None, f"{service} can be reached: {words}")
            return re.search(r"127\.0\.0\.1:(\d+)", words)

        try:
            yield f"http://127.0.0.1:{eventually(f'{service} is forwarded', local)[1]}"
        finally:
            forwarding.terminate()


def inside(*words):
    return ("--namespace", NAMESPACE, *words)


def kubectl(*words, stdin="", check=True, errors=False):
    """The output of kubectl; with `errors`, also its standard error."""
    if not {"get", "logs"} & set(words):
        print("$ kubectl", *words, flush=True)
    done = run(["kubectl", *words], check, input=stdin, timeout=2 * LIMIT)
    return done.stdout + (done.stderr if errors else "")


if __name__ == "__main__":
    main()
