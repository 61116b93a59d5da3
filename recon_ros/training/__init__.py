# SPDX-License-Identifier: Apache-2.0
"""Training of the compact network: procedural scenes with exact truth, and the loop that learns from them.

Scenes: `surfaces` (quads), `materials`, `photographs` and `pool` (textures), `furniture`, `shell` and `scenes`
(layouts), `lighting`, `render_cpu` and `render_gpu`, `paths`, `lens`, and `shards`, which writes and reads them.
"""
