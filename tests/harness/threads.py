"""threads.py - the same work on several threads of this process, started together.

Why:        a failure on a thread is easily lost: here it is collected and fails the test.
Used by:    tests/unit
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["in_threads"]


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Calls `work(0)` to `work(count - 1)`, each on a thread; what they returned, in this order."""
    gate = threading.Barrier(count)
    results: list[Any] = [None] * count
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            gate.wait()
            results[number] = work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return results
