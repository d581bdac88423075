"""What a check says of something that does not hold, and where."""

import contextlib


class Refused(Exception):
    pass


def expect(holds, what):
    if not holds:
        raise Refused(what)


@contextlib.contextmanager
def within(where):
    """Whatever is refused inside is refused there."""
    try:
        yield
    except Refused as refused:
        raise Refused(f"{where}: {refused}") from None
