"""Copies what is shipped, and renders it."""

import itertools
import pathlib
import shutil
import subprocess

import yaml

from refusal import Refused, expect

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
# Where credentials/make puts the passwords that it makes.
MADE = "made-by-k8s-credentials-make"
# The components that can be combined.
COMPONENTS = ["ha", "autoscale", "monitoring", "tls", "replay-in-gateway"]
SHIPPED = ["docker-compose.yml", "Dockerfile"]


def copy(root, source=REPOSITORY, passwords=False):
    """A copy, so that passwords can be made there without touching those that somebody has."""
    shutil.rmtree(root, ignore_errors=True)
    ignore = None if passwords else shutil.ignore_patterns(MADE)
    shutil.copytree(source / "k8s", root / "k8s", ignore=ignore)
    for name in SHIPPED:
        shutil.copy(source / name, root / name)


def make_passwords(root):
    subprocess.run(["bash", root / "k8s/credentials/make"], check=True, stdout=subprocess.DEVNULL)


def kustomize(directory):
    return subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True)


def render(directory):
    rendered = kustomize(directory)
    if rendered.returncode != 0:
        raise Refused(rendered.stderr)
    expect(not rendered.stderr, f"warns: {rendered.stderr}")
    return list(yaml.load_all(rendered.stdout, yaml.CSafeLoader))


def combination(root, parts):
    """Renders the system with these components."""
    directory = root / "combinations" / ("-".join(parts) or "none")
    directory.mkdir(parents=True, exist_ok=True)
    if "tls" in parts:
        parts = [*parts, "cert-manager"]
    components = ["credentials/own", *(f"components/{part}" for part in parts), "components/common"]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../k8s/base"],
        "components": [f"../../k8s/{component}" for component in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(directory)


def combinations():
    """Every choice of components, forwards and backwards: their order is not to matter."""
    for size in range(len(COMPONENTS) + 1):
        for chosen in itertools.combinations(COMPONENTS, size):
            yield from {chosen, chosen[::-1]}
