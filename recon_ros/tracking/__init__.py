# SPDX-License-Identifier: Apache-2.0
"""From a pointmap to a pose: registration of a frame against the keyframes."""
