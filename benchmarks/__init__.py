# SPDX-License-Identifier: Apache-2.0
"""Timings and long runs that anybody can repeat with one command: see README.md here."""
