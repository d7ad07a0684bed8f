# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a key of the models' API, and what is said of one that does not."""

from __future__ import annotations

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.api_keys import problem

KEY = "a-key_of-16_chars"


@pytest.mark.parametrize("text", [KEY, f"{KEY}\n", f"{KEY}\n{'f' * 200}\n"])
def test_keys(text: str) -> None:
    assert problem(text, "llamacpp_api_key") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "llamacpp_api_key has 0 characters, or others than letters, digits, _ and -."),
        ("short", "llamacpp_api_key has 5 characters, or"),
        (f"{KEY} {KEY}", "llamacpp_api_key has 35 characters, or"),
        ("k" * 201, "llamacpp_api_key has 201 characters, or"),
        (f"{KEY}\n\n{KEY}", "llamacpp_api_key, line 2, has 0 characters, or"),
        (f"{KEY}\n{KEY}$", "llamacpp_api_key, line 2, has 18 characters, or"),
    ],
)
def test_what_is_none(text: str, said: str) -> None:
    found = problem(text, "llamacpp_api_key")
    assert found.startswith(said) and found.endswith("secrets folder to get a new one.")
    assert KEY not in found
