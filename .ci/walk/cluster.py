"""Applies k8s/ to the cluster that kubectl talks to, scales, replaces and deletes each part of it under load, and
asks for the verdict. `cluster` beside this file calls it."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

from steps import LIMIT, answer, ask_and_follow, eventually, expect, step

NAMESPACE = "decoupled"
SIDES = ("requestor", "generator")
RATE = "200"

# Every cluster has it, and it never gets as far as running.
PRIVILEGED = """
apiVersion: v1
kind: Pod
metadata: {name: privileged}
spec:
  containers:
    - {name: lab, image: "decoupled/lab:0.1.0", securityContext: {privileged: true}}
"""

# Has a password and keeps to the rules, but is nobody that a network policy knows.
STRANGER = """
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: lab
      image: decoupled/lab:0.1.0
      imagePullPolicy: IfNotPresent
      args: [audit]
      env:
        - {name: NATS_URL, value: "nats://%s:4222"}
        - {name: NATS_USER, value: auditor}
        - {name: NATS_PASSWORD, valueFrom: {secretKeyRef: {name: nats-auditor, key: password}}}
        - {name: NATS_INBOX_PREFIX, value: _INBOX_auditor}
      securityContext:
        {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
"""


def main():
    expect(not kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"), f"there is no namespace {NAMESPACE} yet")
    try:
        walk()
    except BaseException:
        for words in (["get", "all", "--output", "wide"], ["get", "events"], ["logs", "--prefix", "--selector", "app.kubernetes.io/name"]):
            print(kubectl("--namespace", NAMESPACE, *words, check=False))
        raise
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", check=False)


def walk():
    step("apply everything, and wait until all of it is ready")
    begun = time.monotonic()
    kubectl("apply", "-k", "k8s")
    for workload in ("statefulset/nats", *(f"deployment/{name}" for name in (*SIDES, "viewer"))):
        rolled_out(workload)
    print(f"  after {time.monotonic() - begun:.0f} s")
    with forwarded("viewer", 8085) as page:
        walk_under_load(page)


def walk_under_load(page):
    step("ask for a string through the page, and follow it home")
    ask_and_follow(lambda path, *asked, **unless: answer(page + path, *asked, **unless))

    step("a pod with privileges is refused, and one that no policy knows reaches nobody")
    refusal = kubectl(*inside("create", "--dry-run=server", "--filename", "-"), stdin=PRIVILEGED, check=False, errors=True)
    expect('violates PodSecurity "restricted' in refusal, f"a privileged pod is refused: {refusal}")
    # By its address, so that it is not for want of a name.
    kubectl(*inside("create", "--filename", "-"), stdin=STRANGER % pods("broker")[0]["status"]["podIP"])
    eventually("the stranger gives up", lambda: found("pod/stranger")["status"]["phase"] == "Failed")
    expect("no broker answers" in kubectl(*inside("logs", "stranger")), "it has not reached the broker")

    step("put it under load")
    ask_for(RATE)
    eventually("requests come home", lambda: numbers(page)["received"] >= 100)

    step("stop the generators: requests wait, and the requestor does not notice")
    requestors = uids("requestor")
    scale("generator", 0)
    before = numbers(page)["pending"]
    eventually("requests wait", lambda: numbers(page)["pending"] >= before + 500)
    expect(all(map(ready, pods("requestor"))), "the requestor is ready without a generator")

    step("start them: the queue drains")
    scale("generator", 2)
    eventually("the queue drains", lambda: numbers(page)["pending"] < 200)
    expect(uids("requestor") == requestors, "the requestor was not touched")

    for side in SIDES:
        step(f"scale the {side}s from one to five, to none and to two")
        for replicas in (1, 5, 0, 2):
            scale(side, replicas)

    step("replace both sides at once, and leave the broker alone")
    before, brokers = uids(*SIDES), uids("broker")
    kubectl(*inside("rollout", "restart", *(f"deployment/{side}" for side in SIDES)))
    for side in SIDES:
        rolled_out(f"deployment/{side}")
    expect(before.isdisjoint(uids(*SIDES)), "every replica is a new one")
    expect(uids("broker") == brokers, "the broker is the same")

    step("delete the broker's pod: it comes back, with what it had")
    before = numbers(page)["requested"]
    kubectl(*inside("delete", "pod", "nats-0"))
    rolled_out("statefulset/nats")
    eventually("the sides are ready again", lambda: all(map(ready, pods(*SIDES))))
    eventually("requests come home", lambda: numbers(page)["received"] > before + 1000)
    expect(sum(map(restarts, pods(*SIDES))) == 0, "no service had to be restarted for that")

    step("ask for no more, and for the verdict")
    ask_for("0")
    kubectl("apply", "-k", "k8s/audit")
    # One of the two comes; to wait for the better one would be to wait for nothing if it is the other.
    eventually("the audit ends", lambda: conditions("job/audit") & {"Complete", "Failed"})
    said = kubectl(*inside("logs", "job/audit"))
    print(said)
    expect("Complete" in conditions("job/audit"), "the audit is clean")
    verdict = {name: int(number) for number, name in ((n, w) for w, n in re.findall(r"^ *([a-z-]+) +(\d+)", said, re.M))}
    expect((verdict["lost"], verdict["doubled"]) == (0, 0), "nothing is lost and nothing doubled")
    expect(verdict["requested"] == verdict["complete"] > 1000, "all that was asked for came home")


def ask_for(rate):
    """Lets the requestors ask for that many strings a second."""
    kubectl(*inside("set", "env", "deployment/requestor", f"REQUEST_RATE={rate}"))
    rolled_out("deployment/requestor")


def scale(side, replicas):
    kubectl(*inside("scale", f"deployment/{side}", f"--replicas={replicas}"))
    eventually(f"{replicas} of the {side}", lambda: len(pods(side)) == replicas and all(map(ready, pods(side))))


def rolled_out(workload):
    kubectl(*inside("rollout", "status", workload, f"--timeout={LIMIT}s"))


def numbers(page):
    """What the page counts, out of the first picture that it gives and that is not an old one."""
    def look():
        with urllib.request.urlopen(f"{page}/api/events", timeout=LIMIT) as events:
            lines = (line.decode().rstrip("\n") for line in events)
            next(line for line in lines if line == "event: picture")
            picture = json.loads(next(lines).removeprefix("data: "))
            return None if picture["trouble"] else picture["flow"]["numbers"]
    return eventually("the page sees the queues", look)


def pods(*components):
    """The pods of these components that nobody has told to go."""
    selector = f"app.kubernetes.io/component in ({','.join(components)})"
    there = json.loads(kubectl(*inside("get", "pods", "--selector", selector, "--output", "json")))["items"]
    return [pod for pod in there if "deletionTimestamp" not in pod["metadata"]]


def uids(*components):
    return {pod["metadata"]["uid"] for pod in pods(*components)}


def ready(pod):
    return any((condition["type"], condition["status"]) == ("Ready", "True") for condition in pod["status"]["conditions"])


def restarts(pod):
    return sum(container["restartCount"] for container in pod["status"]["containerStatuses"])


def conditions(name):
    held = found(name)["status"].get("conditions", [])
    return {condition["type"] for condition in held if condition["status"] == "True"}


def found(name):
    return json.loads(kubectl(*inside("get", name, "--output", "json")))


@contextlib.contextmanager
def forwarded(service, port):
    """The address under which a Service is reached from here."""
    words = ["kubectl", *inside("port-forward", f"service/{service}", f":{port}")]
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
    """What kubectl prints; with `errors`, also what it complains of."""
    if not {"get", "logs"} & set(words):
        print("$ kubectl", *words, flush=True)
    done = subprocess.run(["kubectl", *words], input=stdin, capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"kubectl {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + (done.stderr if errors else "")


if __name__ == "__main__":
    main()
