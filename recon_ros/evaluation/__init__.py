# SPDX-License-Identifier: Apache-2.0
"""How good a reconstruction is: trajectory and cloud against truth, the report and its picture."""
