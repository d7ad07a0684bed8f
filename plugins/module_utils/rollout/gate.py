# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a server that speaks OpenAI's API whether it may serve: its model list, a real answer, its speed."""

from __future__ import annotations

import http.client
import json
import math
import re
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

SECONDS = 300.0  # that one answer may take
FEWEST, MOST = 8, 64  # tokens that a speed is measured by
TRIES = 3  # something else on the host may slow one of them down
LIMIT = 8 * 1024 * 1024  # bytes of any answer
#: Two texts whose vectors must differ.
TEXTS = ("The invoice is due at the end of the month.", "A lighthouse stands on the northern cliff.")


class GateError(Exception):
    """The server may not serve. The text says what was asked and what came back."""


@dataclass(frozen=True)
class Server:
    """``url`` is http://ADDRESS:PORT, ``model`` what requests call it."""

    url: str
    model: str
    key: str = ""


@dataclass(frozen=True)
class Question:
    """``expect``: regular expression that the answer must hold, in any case; empty: any answer that is no gibberish."""

    question: str
    expect: str = ""
    tokens: int = 64


@dataclass(frozen=True)
class Reply:
    text: str
    tokens: int
    seconds: float  # from the request to the last token
    said: float = 0.0  # tokens per second while it wrote, as the server says; 0 where it does not

    @property
    def speed(self) -> float | None:
        """Tokens per second; ``None`` when it wrote too little to tell.

        Not from the first token to the last as they arrive here: when nobody reads for a while they come all at once.
        """
        if self.tokens < FEWEST:
            return None
        return self.said or self.tokens / max(self.seconds, 1e-6)


@contextmanager
def _asked(server: Server, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request, status 200. Never through a proxy: the service is ours."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=SECONDS)
    headers = {"Connection": "close", "Content-Type": "application/json"}
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            said = " ".join(response.read(2000).decode(errors="replace").split())
            raise GateError(f"{server.url}{path} answered HTTP {response.status}: {said[:300]}")
        yield response
    except TimeoutError:
        raise GateError(f"{server.url}{path} gave no answer within {SECONDS:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise GateError(f"{server.url}{path} broke off: {type(error).__name__}: {error}") from error
    finally:
        connection.close()


def _json(server: Server, method: str, path: str, body: Any = None) -> Any:
    with _asked(server, method, path, body) as response:
        text = response.read(LIMIT)
    try:
        return json.loads(text)
    except ValueError:
        raise GateError(f"{server.url}{path} answered no JSON: {text[:200]!r}") from None


def models(server: Server) -> list[str]:
    said = _json(server, "GET", "/v1/models")
    try:
        return [str(one["id"]) for one in said["data"]]
    except (TypeError, KeyError):
        raise GateError(f"{server.url}/v1/models answered no list of models: {str(said)[:200]}") from None


def chat(server: Server, question: Question, full: bool = False) -> Reply:
    """The streamed answer, up to where it holds what is expected.

    ``full``: as many tokens as asked for, whatever they are, also where the model would end sooner, if it can.
    """
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": question.question}],
        "max_tokens": question.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if full else {}),
    }
    text, pieces, counted, said = "", 0, 0, 0.0
    start = last = time.monotonic()
    with _asked(server, "POST", "/v1/chat/completions", body) as response:
        while line := response.readline(LIMIT):
            if time.monotonic() - start > SECONDS:
                raise GateError(f"{server.url} had not ended its answer after {SECONDS:.0f} s")
            if line[5:].strip() == b"[DONE]":
                return Reply(text, counted or pieces, last - start, said)
            if not line.startswith(b"data:"):
                continue
            piece, usage, speed = _event(server, line[5:])
            counted, said = usage or counted, speed or said
            if piece:
                last = time.monotonic()
                pieces += 1
                text += piece
                if question.expect and not full and re.search(question.expect, text, re.IGNORECASE):
                    return Reply(text, pieces, last - start)
    raise GateError(f"{server.url} broke its answer off after {pieces} pieces: {text[-100:]!r}")


def _event(server: Server, data: bytes) -> tuple[str, int, float]:
    """What one event of a stream adds to the text, and the tokens and tokens per second it says, or 0."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise GateError(f"{server.url} broke its answer off: {str(event['error'])[:300]}")
        delta = event["choices"][0].get("delta") or {} if event.get("choices") else {}
        tokens = int((event.get("usage") or {}).get("completion_tokens") or 0)
        speed = float((event.get("timings") or {}).get("predicted_per_second") or 0)  # llama.cpp's
        text = "".join(str(delta.get(key) or "") for key in ("reasoning_content", "reasoning", "content"))
        return text, tokens, speed
    except (ValueError, TypeError, KeyError, AttributeError):
        raise GateError(f"{server.url} streamed what is no event of an answer: {data[:200]!r}") from None


def gibberish(text: str) -> str:
    """What is wrong with a text as such; empty when it may be somebody's words."""
    if not text.strip():
        return "nothing but blanks"
    odd = sum(
        1 for sign in text if sign == "�" or (unicodedata.category(sign) in ("Cc", "Cn", "Co") and sign not in "\n\r\t")
    )
    if odd * 20 > len(text):
        return "unreadable signs"
    bare = "".join(text.split())
    if len(bare) >= 24 and len(set(bare)) <= 3:
        return "the same signs over and over"
    words = text.split()
    if len(words) >= 16 and len(set(words)) * 8 <= len(words):
        return "the same words over and over"
    return ""


def vectors(server: Server, texts: Sequence[str]) -> list[list[float]]:
    said = _json(server, "POST", "/v1/embeddings", {"model": server.model, "input": list(texts)})
    try:
        found = [
            [float(value) for value in one["embedding"]] for one in sorted(said["data"], key=lambda one: one["index"])
        ]
    except (TypeError, KeyError, ValueError):
        raise GateError(f"{server.url}/v1/embeddings answered no vectors: {str(said)[:200]}") from None
    if len(found) != len(texts):
        raise GateError(f"{server.url}/v1/embeddings answered {len(found)} vectors to {len(texts)} texts")
    return found


def check_vectors(found: Sequence[Sequence[float]], dimensions: int = 0) -> None:
    """Refuse vectors of two texts that say nothing about them."""
    first, second = found
    for vector in found:
        if dimensions and len(vector) != dimensions:
            raise GateError(f"its vectors have {len(vector)} dimensions; the plan and what is stored have {dimensions}")
        if not all(math.isfinite(value) for value in vector):
            raise GateError("its vectors hold values that are no numbers (NaN or infinite)")
        if not any(vector):
            raise GateError("its vectors are all zero")
    product = sum(a * b for a, b in zip(first, second, strict=True))
    if product * product >= 0.9999 * sum(a * a for a in first) * sum(b * b for b in second):
        raise GateError("it gives the same vector to different texts")


def check(server: Server, kind: str, question: Question, dimensions: int = 0) -> str:
    """Ask a server that is ready for a real answer; the answer. GateError when it may not serve."""
    listed = models(server)
    if server.model not in listed:
        raise GateError(f"{server.url}/v1/models does not list '{server.model}', only {', '.join(listed) or 'nothing'}")
    if kind == "embedding":
        check_vectors(vectors(server, TEXTS), dimensions)
        return ""
    answer = chat(server, question).text
    shown = f"asked '{question.question}' it answered {answer[:300]!r}"
    if fault := gibberish(answer):
        raise GateError(f"{shown}: {fault}")
    if question.expect and not re.search(question.expect, answer, re.IGNORECASE):
        raise GateError(
            f"{shown}, which does not match /{question.expect}/ (rollout_gates: another question for this model)"
        )
    return answer


def speed(server: Server, question: Question, enough: float = math.inf, tries: int = TRIES) -> float | None:
    """Decode speed in tok/s: the best of a few answers, or the first that is ``enough``. ``None``: too short."""
    best: float | None = None
    question = replace(question, tokens=min(question.tokens, MOST))
    for _ in range(tries):
        seen = chat(server, question, full=True).speed
        if seen is None:
            break
        best = max(best or 0.0, seen)
        if best >= enough:
            break
    return best


def needed_speed(before: float, ratio: float, predicted: float | None, predicted_before: float | None) -> float:
    """The least speed that passes, tok/s: a larger model may be as much slower as the plan expects."""
    expected = predicted / predicted_before if predicted and predicted_before else 1.0
    return before * ratio * min(1.0, expected)


def check_rules(rules: Mapping[str, Any]) -> None:
    """GateError for questions that nobody could pass, before anything is replaced."""
    for name, said in {"": rules, **rules["models"]}.items():
        whose = f" of {name}" if name else ""
        if name and (unknown := set(said) - {"question", "expect", "tokens"}):
            raise GateError(f"the gate{whose} says {', '.join(sorted(unknown))}; it knows question, expect and tokens")
        try:
            re.compile(str(said.get("expect") or ""))
        except re.error as error:
            raise GateError(f"expect{whose} is '{said['expect']}', which is no regular expression: {error}") from error


def question(gate: Mapping[str, Any], model: str) -> Question:
    """The question to one model: the component's, and what ``gate.models`` says of this one."""
    said = {**gate, **gate["models"].get(model, {})}
    return Question(str(said["question"]), str(said["expect"] or ""), int(said["tokens"]))
