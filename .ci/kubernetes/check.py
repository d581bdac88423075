"""Renders the shipped manifests, and checks rules that no tool has; `run` beside this file calls it."""

import base64
import contextlib
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
import rules
from objects import Refused, expect, of_kind, title, within
from programs import REPOSITORY

HERE = pathlib.Path(__file__).parent
SCHEMAS = yaml.safe_load((HERE / "schemas.yaml").read_text())
FAULTS = yaml.safe_load((HERE / "faults.yaml").read_text())
# The folder for the passwords of credentials/make, and the prefix of those in the repository.
MADE, LOCAL = "made-by-k8s-credentials-make", base64.b64encode(b"local-use-only-").decode()


def main(home):
    root, rendered = home / "tree", home / "rendered"
    for directory in (root, rendered):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(REPOSITORY / "k8s", root / "k8s", ignore=shutil.ignore_patterns(MADE))
    shutil.copytree(REPOSITORY / "monitoring", root / "monitoring")
    for name in ("docker-compose.yml", "Dockerfile"):
        shutil.copy(REPOSITORY / name, root)
    names = ["k8s", *(path.name for path in root.glob("k8s/overlays/*"))]
    for name in names[1:]:
        refusal = refusal_of(render, root, name)
        expect(MADE in refusal, f"{name} does not say how to make passwords: {refusal}")
    subprocess.run(["bash", root / "k8s/credentials/make"], check=True, stdout=subprocess.DEVNULL)

    systems = {name: render(root, name) for name in names}
    for what in (*names, "Compose"):
        with within(what):
            check(root, what, systems)
    for old, new in itertools.permutations(names, 2):
        with within(f"{new} over {old}"):
            rules.check_apply(systems[old], systems[new])
    common = root / "k8s/components/common/kustomization.yaml"
    with edited(common, "namespace: decoupled", "namespace: elsewhere"):
        for name in names:
            with within(f"{name} in another namespace"):
                check(root, name, systems)
    print(f"{len(names)} systems and Compose fit together, and agree with the programs")
    for what, file, old, new, words in FAULTS:
        with within(f"the fault {new!r} for {old!r} in {file}"), edited(root / file, old, new):
            refusal = refusal_of(check, root, what, systems)
            expect(refusal and words in refusal, f"is not refused for its own reason: {refusal or 'not at all'}")
    print(f"{len(FAULTS)} faults are refused, each for its own reason")

    (rendered / "systems").mkdir(parents=True)
    for name in names:
        (rendered / f"systems/{name}.yaml").write_text(yaml.safe_dump_all(systems[name]))
    for rule in of_kind(systems["monitoring"], "PrometheusRule"):
        (rendered / f"{rule['metadata']['name']}.rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    for tests in HERE.glob("*.test.yaml"):
        shutil.copy(tests, rendered)


def render(root, name):
    directory = root / ("k8s" if name == "k8s" else f"k8s/overlays/{name}")
    done = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True)
    expect(done.returncode == 0 and not done.stderr, done.stderr)
    expect(name == "k8s" or LOCAL not in done.stdout, "has a password of the repository")
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


def check(root, what, systems):
    """Checks Compose, a system, or a system that is applied over another."""
    name, _, over = what.partition(" over ")
    objects = list(compose.objects(root)) if name == "Compose" else render(root, name)
    if over:
        return rules.check_apply(systems[over], objects)
    for thing in objects:
        with within(title(thing)):
            check_schema(json.dumps(thing))
    return compose.check(root, objects) if name == "Compose" else rules.check(objects)


@functools.cache
def check_schema(text):
    # Most objects are the same in most systems.
    thing = json.loads(text)
    try:
        jsonschema.validate(thing.get("spec"), SCHEMAS.get(thing["kind"], {}))
        kubernetes_validate.validate(thing, "1.36", strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise Refused(f"{'.'.join(map(str, error.path))}: {error.message}") from None
    except kubernetes_validate.SchemaNotFoundError:
        expect(thing["kind"] in SCHEMAS, "is of a kind that has no schema")


@contextlib.contextmanager
def edited(file, old, new):
    """Replaces one text of a file, and restores the file afterwards."""
    text = file.read_text()
    expect(old in text, "cannot be put there any more")
    file.write_text(text.replace(old, new, 1))
    yield
    file.write_text(text)


def refusal_of(call, *args):
    try:
        call(*args)
    except Refused as refused:
        return str(refused)
    return ""


if __name__ == "__main__":
    sys.exit(refusal_of(main, pathlib.Path(sys.argv[1])) or None)
