# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing is said of a host that only served and was rebooted; what somebody changes there is named.

Last of all: nobody puts it right here. The scenario drift does.
"""

from __future__ import annotations

from mutations import MUTATIONS, look_at, nothing_differs

testinfra_hosts = ["ansible://box"]


def test_nothing_is_said_of_what_only_served(tmp_path):
    nothing_differs(tmp_path, "box")


def test_each_change_is_named(host, tmp_path):
    look_at(host, MUTATIONS["together"], tmp_path)
