# SPDX-License-Identifier: Apache-2.0
"""Pure numpy geometry: cameras, rigid and similarity transforms, pointmaps, alignment, PnP, focal, frustums."""
