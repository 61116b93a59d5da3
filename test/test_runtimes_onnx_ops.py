# SPDX-License-Identifier: Apache-2.0
"""The list of what TensorRT 10.3 takes: every restriction finds a graph that breaks it, and lets its repair pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto as T  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from recon_ros.runtimes import onnx_ops  # noqa: E402


def value(name: str, kind: int = T.FLOAT, shape: Any = (1, 4, 8, 8)) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def model(
    *nodes: Any, inputs: Any = None, outputs: Any = None, constants: Any = (), inner: Any = (), opset: int = 20
) -> Any:
    graph = helper.make_graph(
        list(nodes), "made", inputs or [value("x")], outputs or [value("y")], list(constants), value_info=list(inner)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node(kind: str, inputs: str = "x", outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(" "), outputs.split(" "), name="it", **attributes)


def on(kind: int, op: str, inputs: str = "a", constants: Any = (), **attributes: Any) -> Any:
    """A node that is given `a` of a type, and gives `b`, between casts of float32."""
    return model(
        node("Cast", "x", "a", to=kind),
        node(op, inputs, "b", **attributes),
        node("Cast", "b", "y", to=T.FLOAT),
        constants=constants,
        inner=[value("a", kind), value("b", kind)],
    )


K = constant("k", np.array([3840]))
AXES = constant("axes", np.array([1]))
SIZES = constant("sizes", np.array([1, 4, 16, 16]))
PADS = constant("pads", np.array([1, 1]))
SCALE, OFFSET = constant("s", np.ones(8, np.float16)), constant("o", np.zeros(8, np.float32))

FINE = {
    "elementwise": model(node("Relu")),
    "integers": on(T.INT64, "Abs"),
    "bf16 product": on(T.BFLOAT16, "MatMul", "a a"),
    "top": model(node("TopK", "x k", "y i"), constants=[K]),
    "resize": model(
        node("Resize", "x   sizes", mode="linear", coordinate_transformation_mode="align_corners"), constants=[SIZES]
    ),
    "uint8 image": model(node("Cast", to=T.FLOAT), inputs=[value("x", T.UINT8)]),
    "sum over axes": model(node("ReduceSum", "x axes"), constants=[AXES]),
    "empty": model(node("Identity")),
}

BROKEN = {
    "opset": (model(node("Relu"), opset=21), "opset 21"),
    "attention": (model(node("Attention", "x x x")), "not among"),
    "control flow": (model(node("Loop", "x")), "not among"),
    "shape of data": (model(node("NonZero")), "not among"),
    "int64 at the border": (model(node("Cast", to=T.INT64), outputs=[value("y", T.INT64)]), "output y is int64"),
    "bool at the border": (model(node("Not"), inputs=[value("x", T.BOOL)], outputs=[value("y", T.BOOL)]), "bool"),
    "dynamic": (model(node("Relu"), inputs=[value("x", shape=("n", 4))]), "input x has no static shape"),
    "double": (on(T.DOUBLE, "Exp"), "double"),
    "uint8 arithmetic": (model(node("Add", "x x"), inputs=[value("x", T.UINT8)]), "takes uint8 x"),
    "integer exponential": (on(T.INT32, "Exp"), "takes int32 a"),
    "integer sum along": (on(T.INT64, "CumSum", "a axes", [constant("axes", np.array(1))]), "takes int64 a"),
    "too many": (model(node("TopK", "x k", "y i"), constants=[constant("k", np.array([3841]))]), "best 3841"),
    "unsorted": (model(node("TopK", "x k", "y i", sorted=0), constants=[K]), "sorted"),
    "computed k": (
        model(node("TopK", "x k", "y i"), inputs=[value("x"), value("k", T.INT32, (1,))]),
        "k, is not a constant",
    ),
    "cubic": (model(node("Resize", "x   sizes", mode="cubic"), constants=[SIZES]), "mode cubic"),
    "antialias": (model(node("Resize", "x   sizes", mode="linear", antialias=1), constants=[SIZES]), "antialiasing"),
    "crop": (
        model(
            node("Resize", "x   sizes", mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
            constants=[SIZES],
        ),
        "coordinates half_pixel_symmetric",
    ),
    "bf16 deconvolution": (on(T.BFLOAT16, "ConvTranspose", "a a"), "pixel shuffle"),
    "scatter sum": (
        model(
            node("ScatterElements", "x i x", axis=1, reduction="add"),
            inputs=[value("x"), value("i", T.INT32)],
        ),
        "with a reduction",
    ),
    "more indices than places": (
        model(
            node("ScatterElements", "x i u", axis=1),
            inputs=[value("x"), value("i", T.INT32, (1, 5, 8, 8)), value("u", shape=(1, 5, 8, 8))],
        ),
        "more indices, (1, 5, 8, 8), than places, (1, 4, 8, 8)",
    ),
    "mixed norm": (
        on(T.FLOAT16, "LayerNormalization", "a s o", [SCALE, OFFSET]),
        "mixes float16, float32",
    ),
    "axes of pad": (
        model(node("Pad", "x pads  axes"), constants=[PADS, AXES]),
        "tensor of axes",
    ),
    "pool with indices": (model(node("MaxPool", "x", "y i", kernel_shape=[2, 2])), "indices"),
}


@pytest.mark.parametrize("name", FINE)
def test_fine(name: str) -> None:
    assert onnx_ops.problems(FINE[name]) == []


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    broken, expected = BROKEN[name]
    found = onnx_ops.problems(broken)
    assert any(expected in problem for problem in found), found


def test_other_domains_and_functions() -> None:
    foreign = model(helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft"))
    foreign.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = onnx_ops.problems(foreign)
    assert any("com.microsoft" in problem for problem in found) and any("not among" in problem for problem in found)
    own = model(node("Relu"))
    own.functions.append(helper.make_function("made", "Own", ["a"], ["b"], [node("Relu", "a", "b")], []))
    assert any("Own" in problem for problem in onnx_ops.problems(own))


def test_the_list_is_of_known_operators() -> None:
    """A misspelt operator would never be found."""
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert set(onnx_ops.OPERATORS) <= known
    since = {kind: onnx.defs.get_schema(kind, onnx_ops.MAX_OPSET).since_version for kind in onnx_ops.OPERATORS}
    assert max(since.values()) <= onnx_ops.MAX_OPSET


def test_border() -> None:
    made = model(node("Cast", to=T.FLOAT), inputs=[value("x", T.UINT8, (2, "n"))], outputs=[value("y", shape=())])
    assert onnx_ops.border(made) == ((("x", "uint8", (2, 0)),), (("y", "float32", ()),))
