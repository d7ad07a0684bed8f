# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats with a model at a constant rate until standard input ends, and says as JSON what became of the requests.

load.py URL KEY MODEL RATE: every request is a connection and a conversation of its own, and streamed. It failed unless
its status is 200, its text says what it should and it ends as streams end. Every fortieth one is long.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

URL, KEY, MODEL, RATE = urlsplit(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
LONG = 40


def answer(number: int) -> str:
    """What is wrong with the answer; empty when nothing is."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "stream": True,
        "temperature": 0,
        **({"max_tokens": 30} if number % LONG else {"max_tokens": 150, "ignore_eos": True}),
    }
    headers = {"Authorization": f"Bearer {KEY}", "X-Chat-Id": str(number), "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(URL.hostname or "", URL.port, timeout=120)
    text, done = "", False
    try:
        connection.request("POST", f"{URL.path}/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            return f"status {response.status}: {response.read(300).decode(errors='replace')}"
        for line in response:
            if line.strip() == b"data: [DONE]":
                done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"{type(error).__name__} after {text[-60:]!r}: {error}"
    finally:
        connection.close()
    if not done:
        return f"broke off after {text[-60:]!r}"
    return "" if "Paris" in text else f"another answer: {text[:200]!r}"


def timed(number: int) -> dict[str, Any]:
    at = time.time()
    return {"wrong": answer(number), "at": at, "seconds": time.time() - at}


def main() -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    start, asked = time.monotonic(), []
    with ThreadPoolExecutor(200) as pool:
        while not ended.wait(max(0.0, start + len(asked) / RATE - time.monotonic())):
            asked.append(pool.submit(timed, len(asked)))
        rate = len(asked) / (time.monotonic() - start)
    found = [one.result() for one in asked]
    seconds = sorted(one["seconds"] for one in found)
    report = {"requests": len(found), "rate": rate, "median": seconds[len(seconds) // 2], "slowest": seconds[-1]}
    print(json.dumps(report | {"failed": [one for one in found if one["wrong"]]}))


main()
