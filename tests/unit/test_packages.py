# SPDX-License-Identifier: GPL-3.0-or-later
"""What dpkg is asked, and what its answer means."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.packages import missing, question

ANSWER = "nftables installed\nlibgomp1 installed\nlibgomp1 installed\nslapd config-files\nnginx half-configured\n"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["nftables", "libgomp1"], []),
        (["nftables", "zstd"], ["zstd"]),
        (["slapd", "nginx"], ["slapd", "nginx"]),
        # What apt would understand and dpkg does not.
        (["nftables=1.0", "nft*", "libgomp1:i386"], ["nftables=1.0", "nft*", "libgomp1:i386"]),
        (["table"], ["table"]),
    ],
)
def test_what_is_missing(names: list[str], found: list[str]) -> None:
    assert missing(names, ANSWER) == found


def test_dpkg_understands_the_question() -> None:
    names = ["dpkg", "no-such-package"]
    said = subprocess.run(["/bin/sh", "-c", question(names)], capture_output=True, text=True, check=False)
    assert missing(names, said.stdout) == ["no-such-package"]
