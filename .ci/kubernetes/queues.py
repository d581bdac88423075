"""Each side is scaled by the queues that it takes from, as the contract has them."""

import functools

import yaml

from objects import of_kind, title
from refusal import expect, within
from render import REPOSITORY


@functools.cache
def consumers():
    """Each consumer of the contract, with its stream."""
    contract = yaml.load((REPOSITORY / "crates/contract/asyncapi.yaml").read_text(), yaml.CSafeLoader)
    queues = [channel["x-jetstream"] for channel in contract["channels"].values() if "x-jetstream" in channel]
    found = {(queue["stream"]["name"], queue["consumer"]["name"]) for queue in queues if "consumer" in queue}
    expect(found, "the contract names no consumers")
    return found


def check(objects):
    for thing in of_kind(objects, "ScaledObject"):
        with within(title(thing)):
            target = thing["spec"]["scaleTargetRef"]["name"]
            triggers = [trigger["metadata"] for trigger in thing["spec"]["triggers"]]
            asked = {(trigger["stream"], trigger["consumer"]) for trigger in triggers}
            taken = {(stream, consumer) for stream, consumer in consumers() if consumer == target}
            expect(asked == taken, f"it is scaled by {sorted(asked)}, and {target} takes from {sorted(taken)}")
