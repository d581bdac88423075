"""A rendered system, and all that is asked of it."""

import functools
import json
import pathlib
import subprocess

import jsonschema
import kubernetes_validate
import yaml

import rules
from objects import Refused, expect, title, within

CRDS = yaml.safe_load(pathlib.Path(__file__).with_name("crds.yaml").read_text())


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
