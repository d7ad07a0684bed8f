# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether packages of the distribution are installed, as dpkg says."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable


def question(names: Iterable[str]) -> str:
    """A command for a shell; ``missing`` reads its answer."""
    return f"dpkg-query --show --showformat='${{Package}} ${{db:Status-Status}}\\n' {shlex.join(names)}"


def missing(names: Collection[str], answer: str) -> list[str]:
    """Which of them the ``answer`` does not call installed. dpkg knows no versions or patterns: those are missing."""
    installed = {line.partition(" ")[0] for line in answer.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]
