"""Threads: results must not depend on how many there are."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Let one thread do matrix products; a context, or a decorator of a function.

    NumPy's, and torch's where it has been imported. The last bits of a product depend on how it is
    shared, and a training makes all bits of them; at the sizes of our networks a pool of threads
    costs more time than it gives, too.
    """
    torch: Any = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    with threadpool_limits(1):
        try:
            if torch:
                torch.set_num_threads(1)
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
