# SPDX-License-Identifier: GPL-3.0-or-later
"""What apt offers."""

from __future__ import annotations

import re


def parse_policy(text: str) -> dict[str, list[str]]:
    """Versions that apt can install by package, the candidate first, from apt-cache policy."""
    offers: dict[str, list[str]] = {}
    for block in re.split(r"(?m)^(?=\S+:$)", text):
        name, _, body = block.partition(":\n")
        candidate = re.search(r"Candidate: (\S+)", body)
        if not candidate or candidate[1] == "(none)":
            continue
        # A version that only dpkg's own list knows can be kept, not fetched; it is offered all the same.
        table = re.findall(r"(?m)^ (?:\*\*\*|   ) (\S+) -?\d+$", body)
        offers[name] = [candidate[1], *(version for version in table if version != candidate[1])]
    return offers
