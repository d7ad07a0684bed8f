# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor asks the running services whether what was built is true; each answer is a finding."""
