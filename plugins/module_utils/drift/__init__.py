# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts differ in from what site.yml would make of them: from a run in check mode, and from a look of our own."""
