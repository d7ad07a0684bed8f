# SPDX-License-Identifier: GPL-3.0-or-later
"""A person at the browser: logs in, attaches a knowledge base, asks, reads the cited answer.

Debian's Chromium, driven by Selenium. The site's CA is put into a throw-away NSS store, so TLS is really verified.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@contextmanager
def chromium(home: Path, ca_file: Path, width: int = 1360, height: int = 860) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that trusts the system's CAs and ``ca_file``, and nothing it is told to ignore."""
    store = home / ".pki/nssdb"
    store.mkdir(parents=True, exist_ok=True)
    subprocess.run(["certutil", "-d", f"sql:{store}", "-N", "--empty-password"], check=True)
    subprocess.run(
        ["certutil", "-d", f"sql:{store}", "-A", "-t", "C,,", "-n", "site", "-i", str(ca_file)], check=True
    )
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--lang=en-US",
        f"--user-data-dir={home}/profile",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    service = Service("/usr/bin/chromedriver", env={**os.environ, "HOME": str(home)})
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_page_load_timeout(60)
    try:
        yield browser
    finally:
        browser.quit()
