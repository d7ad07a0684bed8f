# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate's questions: what counts as an answer, and as a speed. How a server fails them is in test_rollout_switch."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.rollout import gate
from ansible_collections.onprem.llm.plugins.module_utils.rollout.gate import GateError, Question, Reply, Server

DONE = b"data: [DONE]\n\n"


def event(text: str, field: str = "content") -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {field: text}}]}).encode() + b"\n\n"


@pytest.fixture(scope="module")
def door() -> Iterator[Any]:
    """A server that answers what the test says; what it was asked is in `asked`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            running.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(running.status)
            self.end_headers()
            self.wfile.write(running.says)

        def log_message(self, *_: object) -> None:
            pass

    class Door(http.server.ThreadingHTTPServer):
        asked: ClassVar[list[Any]] = []
        says, status = b"", 200

        def chat(self, says: bytes, question: Question, status: int = 200, full: bool = False) -> Reply:
            self.says, self.status = says, status
            return gate.chat(Server(f"http://127.0.0.1:{self.server_port}", "m"), question, full)

    with Door(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


ASK = Question("What is the capital of France?", "paris", 32)


def test_an_answer_is_read_up_to_what_is_expected(door: Any) -> None:
    reply = door.chat(event("It is ") + event("PARIS") + event(", of course") + DONE, ASK)
    assert reply.text == "It is PARIS"
    assert door.asked[-1]["max_tokens"] == 32 and "ignore_eos" not in door.asked[-1]


def test_thoughts_count_as_words(door: Any) -> None:
    said = event("The user asks. ", "reasoning_content") + event("Paris") + DONE
    assert door.chat(said, ASK).text == "The user asks. Paris"


def test_a_measurement_reads_all(door: Any) -> None:
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 9}, "timings": {"predicted_per_second": 7.5}}\n\n'
    reply = door.chat(event("Paris") + event(" and") * 3 + usage + DONE, ASK, full=True)
    assert (reply.text, reply.tokens, reply.speed) == ("Paris and and and", 9, 7.5)
    assert door.asked[-1]["ignore_eos"] is True


@pytest.mark.parametrize(
    ("says", "status", "why"),
    [
        (event("It is") + b"", 200, "broke its answer off after 1 pieces"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', 200, "out of memory"),
        (b"data: {\n\n", 200, "no event of an answer"),
        (b'{"error": "loading"}', 503, 'HTTP 503: {"error": "loading"}'),
    ],
)
def test_no_answer(door: Any, says: bytes, status: int, why: str) -> None:
    with pytest.raises(GateError, match=r"^http://") as caught:
        door.chat(says, ASK, status)
    assert why in str(caught.value)


def test_nobody_there() -> None:
    with pytest.raises(GateError, match="broke off: ConnectionRefusedError"):
        gate.chat(Server("http://127.0.0.1:9", "m"), ASK)


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "巴黎是法国的首都。它位于塞纳河畔，是欧洲最重要的城市之一，人口超过二百万。",
        "Paris! 🎉",
        '{"capital": "Paris", "country": "France"}',
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "def f(x):\n\treturn x * 2\n",
        "no, no, no, no: it is Paris, and Paris it has been for long; no other town, no other place, no doubt.",
    ],
)
def test_somebodys_words(text: str) -> None:
    assert gate.gibberish(text) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing but blanks"),
        (" \n\t", "nothing but blanks"),
        ("G" * 40, "the same signs"),
        ("?!?!" * 10, "the same signs"),
        ("\ufffd\ufffdab\ufffd", "unreadable signs"),
        ("\x01\x02 it is \x03", "unreadable signs"),
        ("as it is said " * 12, "the same words"),
    ],
)
def test_gibberish(text: str, why: str) -> None:
    assert why in gate.gibberish(text)


def test_speed() -> None:
    assert Reply("", 10, 2.0).speed == 5.0
    assert Reply("", 10, 0.001, 5.0).speed == 5.0, "the server knows better than who reads it late"
    assert Reply("", gate.FEWEST - 1, 2.0).speed is None, "too few to tell"


@pytest.mark.parametrize(
    ("predicted", "before", "least"), [(None, None, 10.0), (5.0, 10.0, 5.0), (10.0, None, 10.0), (40.0, 10.0, 10.0)]
)
def test_the_least_speed(predicted: float | None, before: float | None, least: float) -> None:
    """Half of 20 tok/s; less where the plan expects less, never more."""
    assert gate.needed_speed(20.0, 0.5, predicted, before) == least


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"expect": "(", "models": {}}, "expect is '(', which is no regular expression"),
        ({"expect": "", "models": {"m": {"expect": "["}}}, "expect of m is '['"),
        ({"expect": "", "models": {"m": {"answer": "x"}}}, "the gate of m says answer; it knows question, expect"),
    ],
)
def test_a_question_that_nobody_could_pass(said: dict[str, Any], why: str) -> None:
    with pytest.raises(GateError) as caught:
        gate.check_rules(said)
    assert why in str(caught.value)


def test_a_models_own_question() -> None:
    asked = {"question": "Q", "expect": "a", "tokens": 9, "models": {"m": {"expect": ""}}}
    assert gate.question(asked, "m") == Question("Q", "", 9)
    assert gate.question(asked, "other") == Question("Q", "a", 9)
