# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: building engines and running them, one implementation for 10.3 to 11 and RTX.

Nothing here is imported before TensorRT is wanted, and nothing needs PyTorch. TensorRT's own objects go by fixed names
(`trt` the module, `builder`, `network`, `parser`, `config`, `engine`, `context` …), and what only TensorRT-RTX has is
called in `rtx.py` alone, so that a test can hold every call against the surface of each supported version
(test/data/trt_surfaces).
"""
