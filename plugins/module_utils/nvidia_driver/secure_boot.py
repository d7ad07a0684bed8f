# SPDX-License-Identifier: GPL-3.0-or-later
"""Secure Boot: whether the kernel wants modules signed, and whether it knows the key that DKMS signs with."""

from __future__ import annotations

from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run, Tree
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import SecureBoot

VARIABLES = "/sys/firmware/efi/efivars"
VARIABLE = "SecureBoot-8be4df61-"
LOCKDOWN = "/sys/kernel/security/lockdown"
# Ubuntu's, then that of DKMS elsewhere: the first that is there is used.
KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")


def firmware(tree: Tree) -> bool | None:
    """The variable of the firmware: four bytes of attributes, then the state. None when there is none."""
    for name in tree.names(VARIABLES) or []:
        if name.startswith(VARIABLE):
            text = tree.text(f"{VARIABLES}/{name}") or ""
            return text[4:5] == "\x01"
    return None


def parse_state(text: str) -> bool | None:
    """Of mokutil --sb-state; None when it tells nothing, as without EFI."""
    if "SecureBoot enabled" in text:
        return "validation is disabled" not in text
    return False if "SecureBoot disabled" in text else None


def parse_lockdown(text: str | None) -> str | None:
    """The word in brackets: none [integrity] confidentiality."""
    return next((word.strip("[]") for word in (text or "").split() if word.startswith("[")), None)


def parse_key(text: str) -> bool | None:
    """Of mokutil --test-key. Its exit status is 1 for an enrolled key and for an error: only the text tells."""
    if "is not enrolled" in text:
        return False
    return True if "already enrolled" in text else None


def enforced(found: SecureBoot) -> bool:
    """Does the kernel refuse modules that nobody it trusts has signed?"""
    return found["on"] or found["lockdown"] in ("integrity", "confidentiality")


def read(tree: Tree, run: Run) -> SecureBoot:
    _, out, err = run(["mokutil", "--sb-state"])
    said = parse_state(out + err)
    key = next((one for one in KEYS if tree.exists(one)), None)
    enrolled = None
    if key:
        _, out, err = run(["mokutil", "--test-key", key])
        enrolled = parse_key(out + err)
    return SecureBoot(
        on=bool(firmware(tree)) if said is None else said,
        lockdown=parse_lockdown(tree.text(LOCKDOWN)),
        enrolled=enrolled,
        key=key,
    )
