"""Renders what is shipped, and checks what no tool knows of it; `run` beside this file calls it."""

import functools
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml

import compose
import faults
import rules
from objects import Refused, data, expect, of_kind, title, within
from programs import REPOSITORY

CRDS = yaml.safe_load(pathlib.Path(__file__).with_name("crds.yaml").read_text())
# Where credentials/make puts the passwords that it makes, and what tells one of the repository from them.
MADE, LOCAL = "made-by-k8s-credentials-make", "local-use-only"
# Those with three brokers.
CLUSTERS = ("ha", "production")


def render(directory):
    done = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True)
    expect(done.returncode == 0 and not done.stderr, done.stderr)
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def check(objects):
    for thing in objects:
        with within(title(thing)):
            check_schema(json.dumps(thing))
    rules.check(objects)


@functools.cache
def check_schema(text):
    # Most objects are the same in most systems.
    thing = json.loads(text)
    try:
        if schema := CRDS.get(thing["kind"]):
            jsonschema.validate(thing["spec"], strict(schema))
        else:
            kubernetes_validate.validate(thing, "1.36", strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise Refused(f"{'.'.join(map(str, error.path))}: {error.message}") from None


def strict(schema):
    """A schema that allows no field which it does not name."""
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {key: {name: strict(each) for name, each in value.items()} if key == "properties" else strict(value) for key, value in schema.items()}


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
    print("each can be applied over each other, or is refused where the store is another")
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
    check_faults(root, systems)
    print(f"{len(faults.FAULTS)} faults are refused, each for what it is")


def check_applies(systems):
    """Each system can be applied over each other, or is refused where it has another store."""
    for (old, before), (new, after) in itertools.permutations(systems.items(), 2):
        with within(f"{new} over {old}"):
            rules.check_apply(before, after, (old in CLUSTERS) != (new in CLUSTERS))


def check_faults(root, systems):
    """Shows that the checks refuse what they are there for: each fault is put into the copy, alone, and has to be refused
    for what it is. A fault that cannot be put there any more is one that nobody looks for."""
    for what, name, old, new, words in faults.FAULTS:
        file = root / "k8s" / name
        text = file.read_text()
        with within(f"the fault {new.strip()!r} for {old.strip()!r} in {name}"):
            expect(old in text, "cannot be put there any more")
            file.write_text(text.replace(old, new, 1))
            refusal = refusal_of(root, what, systems)
            expect(refusal, "is not refused")
            expect(words in refusal, f"is refused for something else: {refusal}")
        file.write_text(text)


def refusal_of(root, what, systems):
    name, _, over = what.partition(" over ")
    try:
        if name == "Compose":
            return compose.check(root)
        objects = render(root / ("k8s" if name == "k8s" else f"k8s/overlays/{name}"))
        if over:
            rules.check_apply(systems[over], objects, (over in CLUSTERS) != (name in CLUSTERS))
        return check(objects)
    except Refused as refused:
        return str(refused)


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1]))
    except Refused as refused:
        sys.exit(str(refused))
