# SPDX-License-Identifier: Apache-2.0
"""What is remembered: which frames become keyframes, and the bounded store that holds them."""
