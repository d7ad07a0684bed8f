# SPDX-License-Identifier: GPL-3.0-or-later
"""Past a tokenizer's list in a GGUF header without fetching all of it.

Vocabulary and merges are most of a header: 4 to 16 MB of strings, each with its length in front. Where the list ends is
not written, but strings can be recognised from anywhere in it: their lengths lead from one to the next. So most of the
way that their average length suggests is jumped, a string is found there, and so on until a metadata key follows. The
caller must hold what it then reads under reserve until it makes a whole header.
"""

from __future__ import annotations

import re
from collections import deque

from ansible_collections.onprem.llm.plugins.module_utils import ranges

#: Bytes looked at to find a string after a jump.
PROBE = 1 << 12
#: Lengths beyond this are none: what is read there is something else.
LENGTH_LIMIT = 1 << 16
KEY = re.compile(rb"[a-z][a-z0-9_]*(\.[a-z0-9_-]+)+")
#: Numbers of GGUF's value types.
TYPES = range(13)


def end_of_list(file: ranges.File, at: int, left: float, limit: int) -> int | None:
    """Where the metadata key after a list of strings begins, or None where that cannot be told.

    ``at``: where a string of the list begins; ``left``: how many strings follow; ``limit``: nothing is read beyond.
    RangeError as from the file.
    """
    limit = min(limit, file.size)
    recent = deque[int](maxlen=4)
    before = unread = 0.0
    while at + 8 <= limit:
        held, first = file.window(at, 8)
        file.window_size = ranges.FIRST_WINDOW
        index, walked = first, 0
        while index + 8 <= len(held):
            length = int.from_bytes(held[index : index + 8], "little")
            if length > LENGTH_LIMIT:
                return _key_among(file, recent, limit)
            recent.append(at + index - first)
            index += 8 + length
            walked += 1
        at += index - first
        average = max((index - first) / max(walked, 1), 8)
        # Lengths grow fast at first and then slowly, so the later average weighs more.
        left -= walked + 4 * unread / (before + 3 * average)
        before, unread = average, 0.0
        if left * average > 4 * ranges.FIRST_WINDOW:
            place = _string_after(file, at + int(left * average * 0.9), at, limit)
            if place is None:
                left = 0.0  # the end is near: walk
            else:
                at, unread = place, float(place - at)
    return None


def _key_among(file: ranges.File, places: deque[int], limit: int) -> int | None:
    """The last of the strings that is a metadata key: after it comes no length, but a type."""
    for place in reversed(places):
        length = int.from_bytes(file.read(place, 8), "little")
        if length > 256 or place + 12 + length > limit:
            continue
        text = file.read(place + 8, length + 4)
        if KEY.fullmatch(text[:length]) and int.from_bytes(text[length:], "little") in TYPES:
            return place
    return None


def _string_after(file: ranges.File, place: int, floor: int, limit: int) -> int | None:
    """Where a string of a list begins, at ``place`` or nearer to ``floor``."""
    while place - floor > ranges.FIRST_WINDOW:
        if place + PROBE <= limit:
            held, first = file.window(place, PROBE)
            for index in range(first, first + PROBE // 2):
                if _is_chain(held, index):
                    return place + index - first
        place = (place + floor) // 2
    return None


def _is_chain(held: bytes, index: int) -> bool:
    """Whether strings follow each other from here on, as they do in a tokenizer's lists and nowhere else."""
    empty = 0
    for _string in range(24):
        length = int.from_bytes(held[index : index + 8], "little")
        if length > 1024 or index + 8 > len(held):
            return False
        empty += not length
        index += 8 + length
    return empty < 12
