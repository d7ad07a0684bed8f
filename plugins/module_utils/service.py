# SPDX-License-Identifier: GPL-3.0-or-later
"""A systemd unit that shall run with its present configuration: what is owed to it, and waiting until it answers."""

from __future__ import annotations

import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass


class ServiceError(Exception):
    """The service died or did not answer in time. The text says which."""


@dataclass(frozen=True)
class State:
    """What systemd says of a unit. Times are seconds since the epoch; 0 means never."""

    active: str  # ActiveState: active, inactive, failed, activating …
    enabled: bool
    unit_changed: bool  # NeedDaemonReload
    started: float  # when its main process started
    loaded: float  # when it last started or reloaded


def newer(paths: Iterable[str], since: float) -> list[str]:
    """Files among ``paths``, and in the folders among them, that changed after ``since``. Links count, not followed."""
    found = []
    for path in paths:
        if not os.path.lexists(path):
            continue
        inside = [path]
        if os.path.isdir(path) and not os.path.islink(path):
            # A folder itself changes when a file in it comes or goes.
            inside = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in ["", *names]]
        found += [name for name in inside if os.lstat(name).st_ctime > since]
    return sorted(found)


def owed(
    state: State, restart_on: Iterable[str], reload_on: Iterable[str], holds: Callable[[], bool] = lambda: True
) -> tuple[list[str], list[str]]:
    """Actions that bring a unit up to date, in order, and why.

    A file is compared with the running process, not with what this run changed. So a run that broke off between
    writing a file and restarting is made good by the next one. ``holds`` says whether what the unit loaded is still
    there; it is asked only of a unit to which nothing else is owed.
    """
    actions, reasons = [], []
    if not state.enabled:
        actions.append("enable")
        reasons.append("it does not start at boot")
    if state.active != "active":
        actions.append("restart")
        reasons.append(f"it is {state.active}")
        return actions, reasons
    stale = newer(restart_on, state.started)
    if state.unit_changed or stale:
        actions.append("restart")
        reasons += [f"{path} changed since it started" for path in stale] or ["its unit changed since it started"]
        return actions, reasons
    stale = newer(reload_on, state.loaded)
    if stale:
        actions.append("reload")
        reasons += [f"{path} changed since it was loaded" for path in stale]
    elif not holds():
        actions.append("reload")
        reasons.append("what it loaded was changed by somebody else")
    return actions, reasons


def answers(url: str, timeout: float = 5.0, ca: str = "") -> tuple[bool, str]:
    """Whether ``url`` answers with 200, and what was seen. Never through a proxy: the service is ours.

    ``ca``: file with the authority that signed its certificate; empty: one of the system's.
    """
    try:
        trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca or None))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trust)
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
