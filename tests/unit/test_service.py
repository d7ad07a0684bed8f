# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a service: with a clock of our own, so no test waits."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import service

UNIT, URL = "llamacpp@tiny.service", "http://127.0.0.1:9101/health"
NO, YES = (False, "HTTP 503"), (True, "HTTP 200")


def wait(
    probes: list[tuple[bool, str]], states: list[tuple[str, int]], timeout: float = 100, step: float = 10
) -> tuple[float, int]:
    """Seconds it says it took, and how often it slept. The last probe and state go on for ever."""
    now, slept = 0.0, 0

    def sleep(_: float) -> None:
        nonlocal now, slept
        now += step
        slept += 1

    def unit_state(unit: str) -> tuple[str, int]:
        assert unit == UNIT
        return states.pop(0) if len(states) > 1 else states[0]

    def probe(url: str) -> tuple[bool, str]:
        assert url == URL
        return probes.pop(0) if len(probes) > 1 else probes[0]

    return service.wait(UNIT, URL, timeout, unit_state, probe, lambda: now, sleep), slept


@pytest.mark.parametrize(
    ("probes", "states", "seconds"),
    [
        ([YES], [("active", 0)], 0),
        ([NO, NO, YES], [("activating", 0), ("active", 0)], 20),
        # Restarts of long ago do not count, and one during the wait is forgiven.
        ([NO, YES], [("active", 7)], 10),
        ([NO, NO, YES], [("active", 0), ("active", 1)], 20),
    ],
)
def test_answers_in_the_end(probes: list[tuple[bool, str]], states: list[tuple[str, int]], seconds: float) -> None:
    assert wait(probes, states) == (seconds, seconds / 10)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([("failed", 0)], f"{UNIT} is failed; {URL} said: HTTP 503"),
        ([("active", 0), ("inactive", 0)], f"{UNIT} is inactive; {URL} said: HTTP 503"),
        ([("active", 3), ("activating", 5)], f"{UNIT} died and was restarted 2 times; {URL} said: HTTP 503"),
        ([("active", 0)], f"{URL} did not answer within 100 s ({UNIT} is active; last: HTTP 503)"),
    ],
)
def test_gives_up(states: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(service.ServiceError) as caught:
        wait([NO], states)
    assert str(caught.value) == message


def test_a_dead_unit_ends_the_wait_at_once() -> None:
    states = [("active", 0), ("failed", 0)]
    with pytest.raises(service.ServiceError):
        wait([NO], states, timeout=0, step=1000)
    assert states == [("failed", 0)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(("status", "good"), [(200, True), (204, False), (401, False), (503, False)])
def test_only_200_is_ready(server: str, status: int, good: bool) -> None:
    assert service.answers(f"{server}/{status}") == (good, f"HTTP {status}")


def test_a_proxy_of_the_environment_is_not_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert service.answers(f"{server}/200")[0]


def test_nobody_there() -> None:
    good, seen = service.answers("http://127.0.0.1:9/health", timeout=1)
    assert not good
    assert "refused" in seen
