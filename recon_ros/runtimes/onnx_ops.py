# SPDX-License-Identifier: Apache-2.0
"""Which ONNX graphs TensorRT takes, from the oldest one that is supported, 10.3 of JetPack 6, onwards.

Source: ``docs/operators.md`` of github.com/onnx/onnx-tensorrt as of TensorRT 10.6 (commit 0137504e), less what its
``docs/Changelog.md`` says came after 10.3: the window operators and a tensor of axes in Pad (10.4), real STFT (10.5).
The documentation of TensorRT 10.0 and 10.1 names opsets 9 to 20. Clip takes integers too, by its importer's source,
and TopK no more than 3840 elements, by the reference of ITopKLayer. Left out on purpose: quantised and recurrent
operators, control flow, random numbers, plugins, and everything whose output shape depends on data; our graphs have
no use for them. Knows nothing of torch; onnx is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_OPSET = 20
"""From opset 23 exporters write Attention, which the list of 10.6 does not have either."""

BORDER = ("uint8", "float32", "int32")
"""What may go in and out of a graph."""
TOPK_LIMIT = 3840
"""TopK may take no more."""

_FLOATS = ("float32", "float16", "bfloat16")
_NUMBERS = (*_FLOATS, "int32", "int64")
_ALL = (*_NUMBERS, "bool")

_ON_FLOATS = (
    "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Conv ConvTranspose Cos Cosh CumSum "
    "Einsum Elu Erf Exp Floor Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid HardSwish "
    "InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MatMul MaxPool "
    "MeanVarianceNormalization PRelu Pow Reciprocal Resize Round Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt "
    "Tan Tanh ThresholdedRelu"
)
_ON_NUMBERS = (
    "Abs Add ArgMax ArgMin Clip DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod "
    "Mul Neg Pad Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Sign SpaceToDepth Sub Sum TopK"
)
_ON_ALL = (
    "Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity OneHot Reshape "
    "Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where"
)

OPERATORS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_ON_FLOATS.split(), _FLOATS),
    **dict.fromkeys(_ON_NUMBERS.split(), _NUMBERS),
    **dict.fromkeys(_ON_ALL.split(), _ALL),
    **dict.fromkeys(("And", "Not", "Or", "Xor"), ("bool",)),
    "Cast": (*_ALL, "uint8"),
    "GridSample": ("float32", "float16"),
}
"""Operator → types that its data may have. uint8 is for the border alone and must be cast at once."""

_INDEX_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Clip": (),
    "CumSum": (1,),
    "Expand": (1,),
    "GatherElements": (1,),
    "Gather": (1,),
    "GatherND": (1,),
    "OneHot": (0, 1),
    "Pad": (1,),
    "Reshape": (1,),
    "Resize": (1, 3),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Where": (0,),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Reduce")), (1,)),
}
"""Inputs that are shapes, places, axes or conditions, not data."""

_CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "CumSum": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Resize": (1, 2, 3),
    "Squeeze": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    **dict.fromkeys((name for name in OPERATORS if name.startswith("Reduce")), (1,)),
}
"""Inputs that must be known when the engine is built."""

RESIZE_MODES = ("nearest", "linear")
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")


Values = tuple[tuple[str, str, tuple[int, ...]], ...]
Border = tuple[Values, Values]


def border(model: Any) -> Border:
    """Inputs and outputs of an ``onnx.ModelProto``: name, type and shape of each; an unknown size is 0."""

    def list_of(values: Any) -> Values:
        kinds = ((value.name, value.type.tensor_type) for value in values)
        return tuple(
            (name, _type_name(kind.elem_type), tuple(dim.dim_value for dim in kind.shape.dim)) for name, kind in kinds
        )

    return list_of(model.graph.input), list_of(model.graph.output)


def problems(model: Any) -> list[str]:
    """What TensorRT 10.3 would not take in an ``onnx.ModelProto``: a sentence each, empty when all is well.

    Weights in external files need not be loaded.
    """
    graph = _Graph(model.graph)
    found = [*_model_problems(model), *_border_problems(model)]
    for node in model.graph.node:
        found += [f"{node.op_type} {node.name or node.output[0]}: {text}" for text in _node_problems(node, graph)]
    return found


class _Graph:
    """Types and shapes of all tensors, and the constants."""

    def __init__(self, graph: Any) -> None:
        self.types: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.constants: dict[str, Any] = {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.types[value.name] = _type_name(value.type.tensor_type.elem_type)
            self.shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for tensor in graph.initializer:
            self.types[tensor.name] = _type_name(tensor.data_type)
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.constants[tensor.name] = tensor
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = _attribute(node, "value")


def _type_name(element: int) -> str:
    import onnx

    return onnx.TensorProto.DataType.Name(element).lower().replace("float", "float32" if element == 1 else "float")


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _model_problems(model: Any) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            yield f"uses operators of the domain {opset.domain!r}"
        elif opset.version > MAX_OPSET:
            yield f"is of opset {opset.version}, beyond {MAX_OPSET}"
    if model.functions:
        yield f"defines functions of its own: {', '.join(function.name for function in model.functions)}"


def _border_problems(model: Any) -> Iterator[str]:
    for side, values in zip(("input", "output"), border(model), strict=True):
        for name, kind, shape in values:
            if kind not in BORDER:
                yield f"{side} {name} is {kind}; there may be {', '.join(BORDER)}"
            if min(shape, default=1) < 1:
                yield f"{side} {name} has no static shape"


def _node_problems(node: Any, graph: _Graph) -> Iterator[str]:
    allowed = OPERATORS.get(node.op_type)
    if allowed is None or node.domain not in ("", "ai.onnx"):
        yield "not among the operators of TensorRT 10.3"
        return
    places = _INDEX_INPUTS.get(node.op_type, ())
    data = [name for index, name in enumerate(node.input) if name and index not in places]
    for name in data:
        kind = graph.types.get(name, "")
        if kind and kind not in allowed:
            yield f"takes {kind} {name}; known for {', '.join(allowed)}"
    for name in (*node.input, *node.output):
        if graph.types.get(name) == "double":
            yield f"{name} is of double precision"
    for index in _CONSTANT_INPUTS.get(node.op_type, ()):
        if len(node.input) > index and node.input[index] and node.input[index] not in graph.constants:
            yield f"its input {index}, {node.input[index]}, is not a constant"
    check = _CHECKS.get(node.op_type)
    if check is not None:
        yield from check(node, graph)


def _check_topk(node: Any, graph: _Graph) -> Iterator[str]:
    import onnx

    constant = graph.constants.get(node.input[1])
    if constant is not None and (count := int(onnx.numpy_helper.to_array(constant).reshape(-1)[0])) > TOPK_LIMIT:
        yield f"takes the best {count}; there may be {TOPK_LIMIT}"
    if _attribute(node, "sorted", 1) != 1:
        yield "must be sorted"


def _check_resize(node: Any, graph: _Graph) -> Iterator[str]:
    mode = _attribute(node, "mode", b"nearest").decode()
    coordinates = _attribute(node, "coordinate_transformation_mode", b"half_pixel").decode()
    if mode not in RESIZE_MODES:
        yield f"of mode {mode}; known are {', '.join(RESIZE_MODES)}"
    if coordinates not in RESIZE_COORDINATES:
        yield f"of coordinates {coordinates}; known are {', '.join(RESIZE_COORDINATES)}"
    if _attribute(node, "antialias", 0):
        yield "with antialiasing"
    if _attribute(node, "keep_aspect_ratio_policy", b"stretch") != b"stretch":
        yield "keeps an aspect ratio"


def _check_transposed(node: Any, graph: _Graph) -> Iterator[str]:
    # Known to the parser, but the builder of TensorRT-RTX 1.7 cannot lower it.
    if graph.types.get(node.input[0]) == "bfloat16":
        yield "in bfloat16; write it as a 1×1 convolution and a pixel shuffle"


def _check_scatter(node: Any, graph: _Graph) -> Iterator[str]:
    if _attribute(node, "reduction", b"none") != b"none":
        yield "with a reduction"
    places, indices = graph.shapes.get(node.input[0], ()), graph.shapes.get(node.input[1], ())
    if node.op_type == "ScatterElements" and any(n > room for n, room in zip(indices, places, strict=False)):
        yield f"has more indices, {indices}, than places, {places}"


def _check_norm(node: Any, graph: _Graph) -> Iterator[str]:
    if len([name for name in node.output if name]) > 1:
        yield "gives more than the normalised tensor"
    kinds = {graph.types.get(name, "") for name in node.input if name}
    if len(kinds - {""}) > 1:
        yield f"mixes {', '.join(sorted(kinds))}, which a strongly typed network does not"


def _check_pad(node: Any, graph: _Graph) -> Iterator[str]:
    if len(node.input) > 3 and node.input[3]:
        yield "with a tensor of axes, which TensorRT knows from 10.4"


def _check_pool(node: Any, graph: _Graph) -> Iterator[str]:
    if len([name for name in node.output if name]) > 1 or set(_attribute(node, "dilations", ())) - {1}:
        yield "with indices or dilations"


_CHECKS: Mapping[str, Callable[[Any, _Graph], Iterator[str]]] = {
    "TopK": _check_topk,
    "Resize": _check_resize,
    "ConvTranspose": _check_transposed,
    "ScatterElements": _check_scatter,
    "ScatterND": _check_scatter,
    "LayerNormalization": _check_norm,
    "GroupNormalization": _check_norm,
    "InstanceNormalization": _check_norm,
    "Pad": _check_pad,
    "AveragePool": _check_pool,
    "MaxPool": _check_pool,
}
