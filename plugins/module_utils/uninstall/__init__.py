# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host had before us, and taking away what came with us."""
