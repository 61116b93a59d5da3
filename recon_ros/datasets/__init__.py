# SPDX-License-Identifier: Apache-2.0
"""Recordings as streams of frames: one reader a file."""
