"""Threads: results must not depend on how many there are."""

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Let one thread do NumPy's matrix products; a context, or a decorator of a function.

    The last bits of a product depend on how it is shared, and a training makes all bits of them.
    """
    with threadpool_limits(1):
        yield
