# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a service: with a clock of our own, so no test waits."""

from __future__ import annotations

import http.server
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import service, systemctl
from ansible_collections.onprem.llm.plugins.module_utils.service import State, newer, owed

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


def test_a_certificate_of_the_sites_own_authority(tmp_path: Path) -> None:
    ca, key = tmp_path / "ca.crt", tmp_path / "key"
    made = (
        "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(["openssl", *made.split(), "-keyout", key, "-out", ca], check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(ca, key)
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"https://127.0.0.1:{running.server_port}/"
        assert service.answers(url, ca=str(ca)) == (True, "HTTP 200")
        good, seen = service.answers(url)
        assert not good and "certificate verify failed" in seen
        assert not service.answers(url, ca=str(tmp_path / "absent"))[0]
        running.shutdown()


def test_nobody_there() -> None:
    good, seen = service.answers("http://127.0.0.1:9/health", timeout=1)
    assert not good
    assert "refused" in seen


NOW = time.time()


@pytest.mark.parametrize(
    ("state", "actions"),
    [
        (State("active", True, False, NOW, NOW), []),
        (State("active", False, False, NOW, NOW), ["enable"]),
        (State("active", True, True, NOW, NOW), ["restart"]),
        (State("failed", True, False, NOW, NOW), ["restart"]),
        (State("not there yet", False, False, 0, 0), ["enable", "restart"]),
    ],
)
def test_what_is_owed_to_a_unit(state: State, actions: list[str]) -> None:
    assert owed(state, [], [])[0] == actions


def test_a_file_that_changed_since_the_start_is_owed_a_restart_or_a_reload(tmp_path: Path) -> None:
    unit, settings = tmp_path / "unit.d", tmp_path / "settings"
    unit.write_text("x")
    settings.write_text("x")
    before, after = time.time() - 100, time.time() + 100
    assert owed(State("active", True, False, after, after), [str(unit)], [str(settings)]) == ([], [])
    actions, reasons = owed(State("active", True, False, before, before), [str(unit)], [str(settings)])
    assert (actions, reasons) == (["restart"], [f"{unit} changed since it started"])
    actions, reasons = owed(State("active", True, False, after, before), [str(unit)], [str(settings)])
    assert (actions, reasons) == (["reload"], [f"{settings} changed since it was loaded"])


def test_what_somebody_took_out_of_the_kernel_is_loaded_again() -> None:
    current = State("active", True, False, NOW, NOW)
    assert owed(current, [], [], lambda: True) == ([], [])
    assert owed(current, [], [], lambda: False) == (["reload"], ["what it loaded was changed by somebody else"])
    assert owed(State("inactive", True, False, NOW, NOW), [], [], lambda: False)[0] == ["restart"]


def test_a_pointer_counts_and_what_it_leads_to_does_not(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    pointer = tmp_path / "current"
    pointer.symlink_to("tree")
    moved = os.lstat(pointer).st_ctime
    (tmp_path / "tree/new").write_text("x")
    assert newer([str(pointer)], moved + 0.001) == []
    assert newer([str(pointer)], moved - 1) == [str(pointer)]
    assert newer([str(tmp_path / "missing")], 0) == []
    # A folder: what is in it, and itself, because a file that went leaves no other trace.
    assert newer([str(tmp_path / "tree")], moved - 1) == [f"{tmp_path}/tree/", f"{tmp_path}/tree/new"]


def test_a_reload_that_failed_is_still_owed() -> None:
    """systemd counts it as a change of state, as late as one that went well."""

    def state(result: str) -> State:
        said = "ActiveState=active\nInactiveExitTimestamp=Sun 2026-11-22 09:00:00.000000 UTC\n"
        said += f"StateChangeTimestamp=Sun 2026-11-22 10:00:00.000000 UTC\n{result}"
        return systemctl.Units(lambda _: (0, said, "")).state("nginx.service")

    for result in ("ReloadResult=success\n", ""):  # a timer has none
        assert state(result).loaded - state(result).started == 3600
    assert state("ReloadResult=exit-code\n").loaded == state("").started
