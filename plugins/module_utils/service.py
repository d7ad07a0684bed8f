# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a service: is its unit alive, does its health URL answer?"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable


class ServiceError(Exception):
    """The service died or did not answer in time. The text says which."""


def answers(url: str, timeout: float = 5.0) -> tuple[bool, str]:
    """Whether ``url`` answers with 200, and what was seen. Never through a proxy: the service is ours."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as response:
            return response.status == 200, f"HTTP {response.status}"
    except urllib.error.HTTPError as error:
        return False, f"HTTP {error.code}"
    except OSError as error:
        return False, str(error)


def wait(
    unit: str,
    url: str,
    timeout: float,
    unit_state: Callable[[str], tuple[str, int]],
    probe: Callable[[str], tuple[bool, str]] = answers,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Seconds until ``url`` answered.

    ``unit_state`` gives the unit's ActiveState and its number of automatic restarts. A unit that failed, or was
    restarted while we waited, ends the wait at once: it would not come up by waiting longer.
    """
    start = clock()
    _, restarts = unit_state(unit)
    while True:
        good, seen = probe(url)
        if good:
            return clock() - start
        state, now = unit_state(unit)
        if state in ("failed", "inactive"):
            raise ServiceError(f"{unit} is {state}; {url} said: {seen}")
        if now > restarts + 1:
            raise ServiceError(f"{unit} died and was restarted {now - restarts} times; {url} said: {seen}")
        if clock() - start > timeout:
            raise ServiceError(f"{url} did not answer within {timeout:.0f} s ({unit} is {state}; last: {seen})")
        sleep(0.3)
