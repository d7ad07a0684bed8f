# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of the models' API: one a line. The first is sent, each is accepted, so that one can follow another."""

from __future__ import annotations

import re

KEY = re.compile(r"[A-Za-z0-9_-]{16,200}")


def problem(text: str, name: str) -> str:
    """What is wrong with the keys in ``text``, the value of the setting ``name``; empty when nothing is."""
    lines = [line.strip() for line in text.strip().splitlines()]
    for number, line in enumerate(lines or [""], 1):
        if not KEY.fullmatch(line):
            where = f", line {number}," if len(lines) > 1 else ""
            return (
                f"{name}{where} has {len(line)} characters, or others than letters, digits, _ and -. Whoever has a "
                "key may use the models, and without one anybody who reaches the port: use 16 to 200 of those, or "
                "delete the file engine_api_key in the secrets folder to get a new one."
            )
    return ""
