"""Renders what is shipped, and checks what no tool knows of it; `run` beside this file calls it."""

import pathlib
import shutil
import subprocess
import sys

import yaml

import compose
import faults
import rules
from objects import Refused, data, expect, of_kind, within
from programs import REPOSITORY
from systems import check, render

# Where credentials/make puts the passwords that it makes, and what tells one of the repository from them.
MADE, LOCAL = "made-by-k8s-credentials-make", "local-use-only"


def elsewhere(root):
    """The whole system in a namespace of another name, which is changed in one place."""
    common = root / "k8s/components/common/kustomization.yaml"
    text = common.read_text()
    common.write_text(text.replace("namespace: decoupled", "namespace: elsewhere"))
    try:
        return render(root / "k8s/overlays/production")
    finally:
        common.write_text(text)


def main(home):
    root = home / "tree"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(REPOSITORY / "k8s", root / "k8s", ignore=shutil.ignore_patterns(MADE))
    for name in ("docker-compose.yml", "Dockerfile"):
        shutil.copy(REPOSITORY / name, root)
    overlays = sorted(path.parent for path in root.glob("k8s/overlays/*/kustomization.yaml"))
    for overlay in overlays:
        done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True)
        expect(MADE in done.stderr, f"{overlay.name} renders without passwords of its own, or does not say how to make them")
    subprocess.run(["bash", root / "k8s/credentials/make"], check=True, stdout=subprocess.DEVNULL)

    systems = {overlay.name: render(overlay) for overlay in overlays} | {"k8s": render(root / "k8s")}
    for name, objects in systems.items():
        with within(name):
            check(objects)
            secrets = [data("Secret", thing["metadata"]["name"], objects) for thing in of_kind(objects, "Secret")]
            expect(name == "k8s" or LOCAL not in str(secrets), "has a password of the repository")
    print(f"{len(systems)} systems are valid for Kubernetes 1.36, fit together, and agree with the programs")
    check_applies(systems)
    print("no apply replaces the store of one broker with that of a cluster, or the other way round")
    with within("in another namespace"):
        objects = elsewhere(root)
        rules.check(objects)
        expect("nats.decoupled" not in str(objects) and 'namespace="' not in str(objects), "names the namespace of another")
    compose.check(root)
    print("the Compose file and the images agree with the programs")
    rendered = home / "rendered"
    rendered.mkdir(exist_ok=True)
    (rendered / "production.yaml").write_text(yaml.safe_dump_all(systems["production"]))
    [alerts] = [thing["spec"] for thing in of_kind(systems["monitoring"], "PrometheusRule")]
    (rendered / "alerts.rules.yaml").write_text(yaml.safe_dump(alerts))
    shutil.copy(pathlib.Path(__file__).with_name("alerts.test.yaml"), rendered)
    print(f"{faults.check(root, systems)} faults are refused, each for what it is")


def check_applies(systems):
    single = ("k8s", "own-credentials", "autoscale", "monitoring", "tls")
    for cluster in ("ha", "production"):
        for name in single:
            with within(f"{cluster} over {name}"):
                rules.check_refusal(systems[name], systems[cluster])
            with within(f"{name} over {cluster}"):
                rules.check_refusal(systems[cluster], systems[name])


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1]))
    except Refused as refused:
        sys.exit(str(refused))
