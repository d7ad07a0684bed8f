# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts SGLang with the key of systemd's credential.

SGLang takes its key as an option only, where every user of the host sees it in the list of processes, and logs all its
settings. Here the key, the first of the file, comes into the settings inside the process, and prints as ***. Its children
import this file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


class Key(str):
    """A string that does not print itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def main() -> None:
    from sglang.launch_server import kill_process_tree, prepare_server_args, run_server

    settings = prepare_server_args(sys.argv[1:])
    settings.api_key = Key((Path(os.environ["CREDENTIALS_DIRECTORY"]) / "api_key").read_text().split()[0])
    try:
        run_server(settings)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
