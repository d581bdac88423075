"""Renders and checks what is shipped; `run` beside this file calls it. What a check is about, its module says."""

import pathlib
import sys

import yaml

import alerts
import compose
import faults
import render
import schemas
import system
from objects import labels_of, workloads
from refusal import Refused, expect, within

# What tells a password of the repository from one's own.
LOCAL_PASSWORD = "local-use-only"


def main(home):
    root = home / "tree"
    render.copy(root)
    overlays = [path.parent.name for path in sorted(root.glob("k8s/overlays/*/kustomization.yaml"))]
    overlays_of_all = [overlay for overlay in overlays if overlay.split("-")[0] not in system.JOBS]
    for overlay in overlays_of_all:
        refused = render.kustomize(root / "k8s/overlays" / overlay)
        with within(overlay):
            hinted = refused.returncode != 0 and render.MADE in refused.stderr
            expect(hinted, f"renders without passwords of its own, or does not say how to make them: {refused.stderr}")
    print(f"without passwords of one's own, {len(overlays_of_all)} overlays refuse to render")
    render.make_passwords(root)

    systems, jobs = system.render_all(root, overlays)
    everybody = [labels_of(each) for objects in [systems["."], *jobs.values()] for each in workloads(objects)]
    for name, objects in systems.items():
        system.check(name, objects, jobs, everybody)
        own = name == "." or LOCAL_PASSWORD not in yaml.dump(objects, Dumper=yaml.CSafeDumper)
        expect(own, f"{name}: has a password of the repository")
    for name, objects in jobs.items():
        system.check_job(name, objects, systems, jobs)
    rendered = f"{len(systems) + len(jobs)} kustomizations are valid for Kubernetes {schemas.KUBERNETES}"
    print(f"{rendered}, fit together, and agree with the programs")
    print(f"{compose.check(root)} services of Compose agree with the programs")
    with within("alerts"):
        print(f"{alerts.check(root)} alerts fire when they should, and not when they should not")
    refused = faults.check(root, home / "faulty", systems, jobs, everybody)
    print(f"{refused} faults are refused, each for what it is")


if __name__ == "__main__":
    try:
        main(pathlib.Path(sys.argv[1]))
    except Refused as refused:
        sys.exit(str(refused))
