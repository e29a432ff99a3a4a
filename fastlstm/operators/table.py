"""The table of ONNX operators: those that exporters write around LSTMs, each a function of this package and a line here.

A function takes the inputs by position, None for one left out, and the attributes by name. It is ONNX's operator of that name in
all versions from operator set 7 on; where a version moved an attribute to an input, both are taken.

References
----------
https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.arrays import Array
from fastlstm.operators import activations, arithmetic, layout, normalizations, quantized, selection
from fastlstm.operators.activations import KERAS_ACTIVATIONS
from fastlstm.operators.arguments import sizes_of
from fastlstm.operators.product import product

__all__ = ["OPERATORS", "Operator"]

Given = dict[str, Any]
ANY_NUMBER = 1 << 16  # of inputs


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes
    ----------
    run : function (*inputs, **attributes) -> array, or tuple of arrays
    inputs : (int, int)
        Least and most.
    attributes : mapping of str to str
        Those it has, and of which kind: "i", "f", "s", "t", "ints", "floats".
    needs : tuple of str
        The attributes that it must have.
    elements : function (*inputs, **attributes) -> int
        How many elements the result has, at most: known before there is memory for them.
    off : tuple of int
        Inputs that must be left out or be a constant 0.
    prepare : function (attributes, operator set, outputs) -> attributes
        Checks and translates what the file gives for ``run``; raises ValueError.
    alike : bool
        Whether all inputs must be of one dtype.
    floats : bool
        Whether the first input must be floats.
    outputs : int
        Most.
    """

    run: Callable[..., Any]
    inputs: tuple[int, int] = (1, 1)
    attributes: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    elements: Callable[..., int] = lambda *inputs, **_: sum(x.size for x in inputs if x is not None)
    off: tuple[int, ...] = ()
    prepare: Callable[[Given, int, int], Given] = lambda given, opset, outputs: given
    alike: bool = False
    floats: bool = False
    outputs: int = 1


def _unary(function: Callable[..., Array], floats: bool = True, **attributes: str) -> Operator:
    return Operator(function, attributes=attributes, floats=floats)


def _pair(function: Callable[..., Array]) -> Operator:
    return Operator(function, (2, 2), elements=arithmetic.broadcast_size, alike=True)


def _many(function: Callable[[Array, Array], Array]) -> Operator:
    return Operator(arithmetic.folded(function), (1, ANY_NUMBER), elements=arithmetic.broadcast_size, alike=True)


def _over_axes(function: Callable[..., Array], floats: bool = False) -> Operator:
    return Operator(
        arithmetic.reduced(function), (1, 2), {"axes": "ints", "keepdims": "i", "noop_with_empty_axes": "i"}, floats=floats
    )


def _place(function: Callable[[Array, int], Array]) -> Operator:
    return Operator(arithmetic.place_of(function), attributes={"axis": "i", "keepdims": "i", "select_last_index": "i"})


def _softmax(function: Callable[[Array], Array]) -> Operator:
    return Operator(activations.along_axis(function), attributes={"axis": "i"}, prepare=activations.softmax_axis, floats=True)


OPERATORS: dict[str, Operator] = {
    # Layout and shapes
    "Cast": Operator(
        layout.cast, attributes={"to": "i", "saturate": "i", "round_mode": "s"}, needs=("to",), prepare=layout.cast_target
    ),
    "Concat": Operator(layout.concatenate, (1, ANY_NUMBER), {"axis": "i"}, needs=("axis",), alike=True),
    "ConstantOfShape": Operator(
        layout.constant_of_shape, attributes={"value": "t"}, elements=lambda shape, **_: math.prod(sizes_of(shape))
    ),
    "Dropout": Operator(lambda x, *more: x, (1, 3), {"ratio": "f", "seed": "i"}, off=(2,), prepare=lambda *_: {}),
    "Expand": Operator(layout.expand, (2, 2), elements=layout.expand_size),
    "Flatten": Operator(layout.flatten, attributes={"axis": "i"}),
    "Gather": Operator(layout.gather, (2, 2), {"axis": "i"}, elements=layout.gather_size),
    "GatherElements": Operator(selection.gather_elements, (2, 2), {"axis": "i"}, elements=lambda x, indices, **_: indices.size),
    "GatherND": Operator(selection.gather_nd, (2, 2), {"batch_dims": "i"}, elements=selection.gather_nd_size),
    "Identity": Operator(lambda x: x),
    "OneHot": Operator(selection.one_hot, (3, 3), {"axis": "i"}, elements=selection.one_hot_size),
    "Pad": Operator(
        selection.pad, (1, 4), {"mode": "s", "pads": "ints", "value": "f"}, elements=selection.pad_size, prepare=selection.pad_of
    ),
    "Range": Operator(selection.range_of, (3, 3), elements=selection.range_size, alike=True),
    "Reshape": Operator(layout.reshape, (2, 2), {"allowzero": "i"}),
    "ScatterElements": Operator(
        selection.scatter_elements, (3, 3), {"axis": "i", "reduction": "s"}, prepare=selection.scatter_of
    ),
    "ScatterND": Operator(selection.scatter_nd, (3, 3), {"reduction": "s"}, prepare=selection.scatter_of),
    "Shape": Operator(layout.shape_of, attributes={"start": "i", "end": "i"}, elements=lambda x, **_: x.ndim),
    "Size": Operator(lambda x: np.array(x.size, np.int64), elements=lambda x: 1),
    "Slice": Operator(layout.slice_of, (1, 5), {"starts": "ints", "ends": "ints", "axes": "ints"}),
    "Split": Operator(
        layout.split, (1, 2), {"axis": "i", "split": "ints", "num_outputs": "i"}, prepare=layout.split_parts, outputs=ANY_NUMBER
    ),
    "Squeeze": Operator(layout.squeeze, (1, 2), {"axes": "ints"}),
    "Tile": Operator(layout.tile, (2, 2), elements=lambda x, repeats: x.size * math.prod(sizes_of(repeats))),
    "TopK": Operator(
        selection.top_k,
        (1, 2),
        {"axis": "i", "k": "i", "largest": "i", "sorted": "i"},
        elements=lambda x, *_, **__: 4 * x.size,  # sorting takes places of all
        outputs=2,
    ),
    "Transpose": Operator(layout.transpose, attributes={"perm": "ints"}),
    "Trilu": Operator(selection.triangle, (1, 2), {"upper": "i"}),
    "Unsqueeze": Operator(layout.unsqueeze, (1, 2), {"axes": "ints"}),
    # Arithmetic
    "Abs": _unary(np.abs, floats=False),
    "Add": _pair(np.add),
    "And": Operator(arithmetic.logical(np.logical_and), (2, 2), elements=arithmetic.broadcast_size),
    "ArgMax": _place(np.argmax),
    "ArgMin": _place(np.argmin),
    "BatchNormalization": Operator(
        normalizations.batch_normalization,
        (5, 5),
        {"epsilon": "f", "momentum": "f", "spatial": "i", "training_mode": "i"},
        prepare=normalizations.batch_normalization_of,
        floats=True,
    ),
    "Ceil": _unary(np.ceil),
    "Clip": Operator(arithmetic.clip, (1, 3), {"min": "f", "max": "f"}, alike=True, elements=arithmetic.broadcast_size),
    "Cos": _unary(np.cos),
    "CumSum": Operator(arithmetic.cumulated, (2, 2), {"exclusive": "i", "reverse": "i"}),
    "DequantizeLinear": Operator(
        quantized.dequantize, (2, 3), {"axis": "i", "block_size": "i", "output_dtype": "i"}, prepare=quantized.quantize_of
    ),
    "Div": _pair(arithmetic.divide),
    "DynamicQuantizeLinear": Operator(quantized.dynamic_quantize, outputs=3, elements=lambda x: x.size + 2),
    "Einsum": Operator(
        lambda *inputs, equation: np.einsum(equation, *inputs),
        (1, 2),
        {"equation": "s"},
        needs=("equation",),
        elements=arithmetic.einsum_size,
        prepare=arithmetic.einsum_of,
        alike=True,
    ),
    "Equal": _pair(np.equal),
    "Erf": _unary(activations.erf),
    "Exp": _unary(np.exp),
    "Floor": _unary(np.floor),
    "Gemm": Operator(
        arithmetic.gemm,
        (2, 3),
        {"alpha": "f", "beta": "f", "transA": "i", "transB": "i"},
        elements=arithmetic.gemm_size,
        alike=True,
        floats=True,
    ),
    "GlobalAveragePool": _unary(arithmetic.over_places(normalizations.mean)),
    "GlobalMaxPool": _unary(arithmetic.over_places(np.max)),
    "Greater": _pair(np.greater),
    "GreaterOrEqual": _pair(np.greater_equal),
    "GroupNormalization": Operator(
        normalizations.group_normalization,
        (3, 3),
        {"epsilon": "f", "num_groups": "i", "stash_type": "i"},
        needs=("num_groups",),
        prepare=normalizations.group_normalization_of,
        alike=True,
        floats=True,
    ),
    "InstanceNormalization": Operator(normalizations.instance_normalization, (3, 3), {"epsilon": "f"}, alike=True, floats=True),
    "LayerNormalization": Operator(
        normalizations.layer_normalization, (2, 3), {"axis": "i", "epsilon": "f", "stash_type": "i"}, alike=True, floats=True
    ),
    "IsInf": _unary(
        lambda x, detect_negative=1, detect_positive=1: np.logical_and(
            np.isinf(x), np.where(x > 0, detect_positive, detect_negative)
        ),
        floats=False,
        detect_negative="i",
        detect_positive="i",
    ),
    "IsNaN": _unary(np.isnan, floats=False),
    "Less": _pair(np.less),
    "LessOrEqual": _pair(np.less_equal),
    "Log": _unary(np.log),
    "MatMul": Operator(product, (2, 2), elements=arithmetic.product_size, alike=True),
    "MatMulInteger": Operator(
        quantized.matmul_integer, (2, 4), elements=lambda a, b, *_: arithmetic.product_size(a, b) + 2 * (a.size + b.size)
    ),
    "Max": _many(np.maximum),
    "Mean": Operator(
        lambda first, *more: arithmetic.folded(np.add)(first, *more) / (1 + len(more)),
        (1, ANY_NUMBER),
        elements=arithmetic.broadcast_size,
        alike=True,
        floats=True,
    ),
    "Min": _many(np.minimum),
    "Mod": Operator(arithmetic.mod, (2, 2), {"fmod": "i"}, elements=arithmetic.broadcast_size, alike=True),
    "Mul": _pair(np.multiply),
    "Neg": _unary(np.negative, floats=False),
    "Not": Operator(arithmetic.logical(np.logical_not)),
    "Or": Operator(arithmetic.logical(np.logical_or), (2, 2), elements=arithmetic.broadcast_size),
    "Pow": Operator(arithmetic.power, (2, 2), elements=arithmetic.broadcast_size),
    "QuantizeLinear": Operator(
        quantized.quantize,
        (2, 3),
        {"axis": "i", "block_size": "i", "output_dtype": "i", "precision": "i", "saturate": "i"},
        prepare=quantized.quantize_of,
    ),
    "Reciprocal": _unary(np.reciprocal),
    "ReduceL2": _over_axes(lambda x, axis, keepdims: np.sqrt((x * x).sum(axis, keepdims=keepdims)), floats=True),
    "ReduceLogSumExp": _over_axes(arithmetic.log_sum_exp, floats=True),
    "ReduceMax": _over_axes(np.max),
    "ReduceMean": _over_axes(normalizations.mean, floats=True),
    "ReduceMin": _over_axes(np.min),
    "ReduceProd": _over_axes(np.prod),
    "ReduceSum": _over_axes(np.sum),
    "Round": _unary(np.rint),
    "Sign": _unary(np.sign, floats=False),
    "Sin": _unary(np.sin),
    "Sqrt": _unary(np.sqrt),
    "Sub": _pair(np.subtract),
    "Sum": _many(np.add),
    "Where": Operator(arithmetic.where, (3, 3), elements=arithmetic.broadcast_size),
    "Xor": Operator(arithmetic.logical(np.logical_xor), (2, 2), elements=arithmetic.broadcast_size),
    # Activations
    "Celu": _unary(lambda x, alpha=1.0: np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0), alpha="f"),
    "Elu": _unary(activations.elu, alpha="f"),
    "Gelu": Operator(activations.gelu, attributes={"approximate": "s"}, prepare=activations.gelu_kind, floats=True),
    "HardSigmoid": _unary(activations.hard_sigmoid, alpha="f", beta="f"),
    "HardSwish": _unary(activations.hard_swish),
    "LeakyRelu": _unary(activations.leaky_relu, alpha="f"),
    "LogSoftmax": _softmax(KERAS_ACTIVATIONS["log_softmax"]),
    "Mish": _unary(lambda x: x * np.tanh(np.logaddexp(x, 0))),
    "PRelu": Operator(activations.prelu, (2, 2), alike=True, floats=True),
    "Relu": _unary(KERAS_ACTIVATIONS["relu"], floats=False),
    "Selu": _unary(activations.selu, alpha="f", gamma="f"),
    "Sigmoid": _unary(KERAS_ACTIVATIONS["sigmoid"]),
    "Softmax": _softmax(KERAS_ACTIVATIONS["softmax"]),
    "Softplus": _unary(KERAS_ACTIVATIONS["softplus"]),
    "Softsign": _unary(KERAS_ACTIVATIONS["softsign"]),
    "Tanh": _unary(KERAS_ACTIVATIONS["tanh"]),
    # What ONNX Runtime's optimizers write
    "com.microsoft.FusedGemm": Operator(
        arithmetic.fused_gemm,
        (2, 3),
        {
            **{"alpha": "f", "beta": "f", "transA": "i", "transB": "i", "activation": "s"},
            **{f"activation_{name}": "f" for name in ("alpha", "beta", "gamma")},
        },
        elements=lambda *inputs, activation, **given: arithmetic.gemm_size(*inputs, **given),
        prepare=arithmetic.fused_activation,
        alike=True,
        floats=True,
    ),
    "com.microsoft.FusedMatMul": Operator(
        arithmetic.fused_product,
        (2, 2),
        {"alpha": "f", "transA": "i", "transB": "i", "transBatchA": "i", "transBatchB": "i"},
        elements=lambda a, b, alpha=1.0, **turns: arithmetic.product_size(*arithmetic.turned(a, b, **turns)),
        prepare=arithmetic.fused_product_of,
        alike=True,
        floats=True,
    ),
    "com.microsoft.Gelu": _unary(activations.gelu),
    "com.microsoft.QuickGelu": _unary(lambda x, alpha=1.702: x * KERAS_ACTIVATIONS["sigmoid"](alpha * x), alpha="f"),
    "com.microsoft.SkipLayerNormalization": Operator(
        normalizations.skip_layer_normalization,
        (3, 5),
        {"epsilon": "f"},
        elements=lambda x, *_, **__: 4 * x.size,
        alike=True,
        floats=True,
        outputs=4,
    ),
}
