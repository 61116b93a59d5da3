# SPDX-License-Identifier: Apache-2.0
"""From keyframes to a map: fusion into a cloud, and the trajectory that follows the keyframes."""
