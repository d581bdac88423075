"""Holds each object against its schema: Kubernetes' own, or one of ours for a kind that it does not know."""

import functools
import json
import pathlib

import jsonschema
import kubernetes_validate
import referencing

from refusal import Refused

KUBERNETES = "1.36"
SCHEMAS = pathlib.Path(__file__).resolve().parent / "schemas"
VALID = set()


@functools.cache
def validator(kind):
    registry = referencing.Registry().with_resources(
        (path.name, referencing.Resource.from_contents(
            json.loads(path.read_text()), default_specification=referencing.jsonschema.DRAFT202012))
        for path in SCHEMAS.glob("*.json")
    )
    path = SCHEMAS / f"{kind}.json"
    if not path.exists():
        return None
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=registry)


def check(thing):
    # Most objects are the same in most kustomizations.
    if (text := json.dumps(thing, sort_keys=True)) in VALID:
        return
    own = validator(f"{thing['apiVersion'].replace('/', '_')}_{thing['kind']}")
    try:
        if own:
            own.validate(thing)
        else:
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise Refused(f"{'.'.join(map(str, error.path))}: {error.message}") from None
    except kubernetes_validate.SchemaNotFoundError:
        raise Refused("there is no schema of this kind, neither Kubernetes' nor one of our own") from None
    VALID.add(text)
