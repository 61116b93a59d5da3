# SPDX-License-Identifier: Apache-2.0
"""Model cards, and the pointmap networks they describe."""
