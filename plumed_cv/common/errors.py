"""The one exception that is written for users."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Wrong input or a missing tool: one sentence that names the file, the value and the remedy.

    The command line prints the sentence to standard error and exits with status 1. Any other
    exception is a defect of this package and keeps its traceback.
    """


@contextmanager
def naming(what: object) -> Iterator[None]:
    """Begin the sentence of a UserError with a name, as of the file that it is about.

    Parameters
    ----------
    what
        The name; a colon follows.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(f"{what}: {error}") from None
