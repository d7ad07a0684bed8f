# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers taken out of nginx's upstreams and put back, in text; what nginx makes of it is seen in molecule/rollout."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import nginx_drain
from ansible_collections.onprem.llm.plugins.modules import nginx_drain as module

TEXT = """http {
  upstream engine_chat {
    least_conn;
    server 10.0.0.1:9101 max_fails=1 fail_timeout=10s;
    server 10.0.0.2:9101;
    # server 10.0.0.9:9101;
  }
  upstream sticky_chat {
    hash $key consistent;
    server 10.0.0.1:9101;
    server 10.0.0.2:9101;
  }
  upstream engine_alone {
    server [fd00::1]:9102;
  }
  server {
    listen 10.0.0.1:9101;
    location / { proxy_pass http://10.0.0.1:9101; }
  }
}
"""


@pytest.mark.parametrize(
    "servers", [["10.0.0.1:9101"], ["10.0.0.1:9101", "10.0.0.2:9101"], ["[fd00::1]:9102"], ["x:1"], []]
)
def test_taken_out_and_put_back_is_the_text_as_it_was(servers: list[str]) -> None:
    assert nginx_drain.marked(nginx_drain.marked(TEXT, servers, True), servers, False) == TEXT


def test_it_is_taken_out_of_every_upstream_and_nothing_else_changes() -> None:
    after = nginx_drain.marked(TEXT, ["10.0.0.1:9101"], True)
    before = TEXT.splitlines()
    assert [line for line in after.splitlines() if line not in before] == [
        "    server 10.0.0.1:9101 max_fails=1 fail_timeout=10s down;",
        "    server 10.0.0.1:9101 down;",
    ]
    assert nginx_drain.marked(after, ["10.0.0.1:9101"], True) == after


def alone(text: str, *servers: str, dead: str = "") -> dict[str, str]:
    return nginx_drain.alone(text, servers, lambda address: address != dead)


def test_the_last_one_is_named_with_its_upstream() -> None:
    assert alone(TEXT, "[fd00::1]:9102", "10.0.0.1:9101") == {"[fd00::1]:9102": "engine_alone"}
    drained = nginx_drain.marked(TEXT, ["10.0.0.1:9101"], True)
    assert alone(drained, "10.0.0.2:9101") == {"10.0.0.2:9101": "sticky_chat"}
    # Both at once would leave none either.
    assert set(alone(TEXT, "10.0.0.1:9101", "10.0.0.2:9101")) == {"10.0.0.1:9101", "10.0.0.2:9101"}
    # One that is out already is taken out again.
    assert alone(drained, "10.0.0.1:9101") == {}


def test_a_server_that_is_lost_does_not_count() -> None:
    assert alone(TEXT, "10.0.0.1:9101", dead="10.0.0.2:9101") == {"10.0.0.1:9101": "sticky_chat"}


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A server that gives one answer; ``None``: it takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                assert connection.recv(4096).startswith(b"GET /health ")
                if answer is None:
                    connection.recv(1)  # until the other side has enough of it
                connection.sendall(answer or b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", True),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", True),  # classic KTransformers
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nLoading model", False),
        (b"", False),
        (None, True),
    ],
)
def test_a_server_that_loads_its_model_is_not_there(answer: bytes | None, there: bool) -> None:
    with listening(answer) as server:
        assert module.answers(server) is there


def test_a_server_that_nobody_runs_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert not module.answers(address)
    assert not module.answers("unix:/run/engine.sock")


def test_requests_go_to_the_first_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        lost = f"127.0.0.1:{server.getsockname()[1]}"
    with listening(b"HTTP/1.1 200 OK\r\n\r\n{}") as there:
        assert module.chosen({"a:1": [lost, there]}) == {"a:1": there}
    # A copy is known to answer, and an original to have answered until now.
    assert module.chosen({"a:1": lost}) == {"a:1": lost}
    with pytest.raises(LookupError, match="a:1"):
        module.chosen({"a:1": [lost]})


def test_the_ports_of_the_models_by_address() -> None:
    assert nginx_drain.ports(TEXT) == {
        "10.0.0.1": {"chat": 9101},
        "10.0.0.2": {"chat": 9101},
        "fd00::1": {"alone": 9102},
    }


def test_what_no_upstream_names_is_left_out() -> None:
    assert nginx_drain.named(TEXT, ["10.0.0.2:9101", "10.0.0.9:9101", "10.0.0.7:1"]) == ["10.0.0.2:9101"]


def test_moved_and_moved_back_is_the_text_as_it_was() -> None:
    moves = {"10.0.0.1:9101": "10.0.0.1:10101", "[fd00::1]:9102": "[fd00::1]:10102", "x:1": "x:2"}
    after = nginx_drain.moved(TEXT, moves)
    assert [line for line in after.splitlines() if line not in TEXT.splitlines()] == [
        "    server 10.0.0.1:10101 max_fails=1 fail_timeout=10s;",
        "    server 10.0.0.1:10101;",
        "    server [fd00::1]:10102;",
    ]
    assert nginx_drain.moved(after, {new: old for old, new in moves.items()}) == TEXT
