# SPDX-License-Identifier: Apache-2.0
"""Results as files other tools read: one writer a file."""
