"""Number of threads: results must not depend on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute matrix products with one thread; a context manager or a decorator of a function.

    It sets the number of threads of NumPy, and of torch if torch has been imported. The last bits
    of a product depend on how it is divided among threads, and a training amplifies this
    difference. At the sizes of our networks, several threads also need more time than one.
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
