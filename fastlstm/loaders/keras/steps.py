"""The layers of Keras as steps: what each class computes at inference, and what it does with masks.

A layer that is not in the table at the end is refused by its name, as is an entry of a configuration that is not known here.

References
----------
The ``call``, ``compute_mask`` and ``get_config`` of the layers in ``keras/src/layers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np

from fastlstm.errors import FormatError
from fastlstm.loaders.found import quoted
from fastlstm.loaders.keras import config as keras_config
from fastlstm.loaders.keras import layer as keras_layer
from fastlstm.loaders.keras.config import class_of, config_of, flag, shown
from fastlstm.loaders.keras.draft import MAX_AXES, Draft, Layer, Shape, Value, is_size, with_batch
from fastlstm.loaders.keras.merging import concatenate, either, last_axis, merge
from fastlstm.loaders.keras.tree import Entry

__all__ = ["LAYERS"]

# Keras' activations: by the names that the steps have for them
ACTIVATIONS = {
    **{name: name for name in ("linear", "relu", "sigmoid", "tanh", "softmax", "elu", "selu", "softplus", "softsign", "silu")},
    **{name: name for name in ("exponential", "leaky_relu", "relu6", "log_softmax", "gelu")},
    "swish": "silu",
}
HARD_SIGMOID = {2: "hard_sigmoid_keras2", 3: "hard_sigmoid"}


def _size(layer: Layer, key: str) -> int:
    value = layer.config.get(key)
    if not is_size(value):
        raise FormatError(f"{key} must be a positive integer, got {shown(value)}")
    return value


def _number(layer: Layer, key: str, default: float | None = None) -> float:
    value = layer.config.get(key, default)
    if not _is_number(value):
        raise FormatError(f"{key} must be a number, got {shown(value)}")
    return float(value)


def _is_number(value: Any) -> TypeGuard[float]:
    """Finite in float32 too; Python's whole numbers may be larger than any float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e38


def _activation(draft: Draft, layer: Layer) -> str:
    name = layer.config.get("activation")
    if name == "hard_sigmoid":
        if draft.version is None:
            raise FormatError("its activation hard_sigmoid differs in Keras 2 and 3, and keras_version is neither")
        return HARD_SIGMOID[draft.version]
    name = "linear" if name is None else name
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise FormatError(
            f"its activation {shown(name)} is not supported; supported are {', '.join(sorted(ACTIVATIONS))}, hard_sigmoid"
        )
    return ACTIVATIONS[name]


# ---- Each class of layers ------------------------------------------------------------------------------------------------------


def _dense(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Dense

    layer.check_keys("units", "activation", "use_bias")
    given, units = layer.one_input(), _size(layer, "units")
    shapes: dict[str, Shape] = {"kernel": (layer.features(), units)}
    if flag(layer.config, "use_bias", True):
        shapes["bias"] = (units,)
    activation = _activation(draft, layer)
    weight, *bias = draft.weights(layer, shapes, turned="kernel")
    more = {"weight": weight, "bias": bias[0] if bias else None, "activation": activation}
    return draft.add(Dense, layer.name, [given], (*given.shape[:-1], units), layer.mask, **more)


def _embedding(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import INPUT, Embedding, NotEqual

    layer.check_keys("input_dim", "output_dim", "mask_zero")
    given, outputs = layer.one_input(), _size(layer, "output_dim")
    if given.step != INPUT:
        raise FormatError("it takes indices that another layer made, which is not supported")
    (table,) = draft.weights(layer, {"embeddings": (_size(layer, "input_dim"), outputs)})
    mask = None
    if flag(layer.config, "mask_zero", False):
        mask = draft.add(NotEqual, f"{layer.name}/mask", [given], given.shape, value=0)
    return draft.add(Embedding, layer.name, [given], (*given.shape, outputs), mask, table=table)


def _masking(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import AnyFeature, Masked, NotEqual

    layer.check_keys("mask_value")
    given, value = layer.one_input(2), _number(layer, "mask_value", 0.0)
    other = draft.add(NotEqual, f"{layer.name}/other", [given], given.shape, value=value)
    mask = draft.add(AnyFeature, f"{layer.name}/mask", [other], given.shape[:1])
    return draft.add(Masked, layer.name, [given, mask], given.shape, mask)


def _recurrent(draft: Draft, layer: Layer) -> Value:
    given = layer.one_input(2)
    plan = keras_config.plan(layer.entry, draft.version)
    sequences, zero = _outputs(layer.entry, plan)
    layout = layer.place.layout(layer.entry)
    if plan.merge_mode is None and plan.bidirectional:
        raise FormatError("its merge_mode is null: two outputs, which are not supported")
    if not plan.batch_first:
        raise FormatError("it is time_major, and the rest of a model is not")
    mask = layer.mask
    if mask and (mask.problem or len(mask.shape) != 1):
        raise FormatError(f"its mask is not supported: {mask.problem or 'it is no mask of time steps'}")
    if mask and class_of(layer.entry) == "CuDNNLSTM":
        raise FormatError("CuDNNLSTM takes no mask")
    if mask and zero and not sequences:
        raise FormatError("its last output under a mask with zero_output_for_mask is not supported")
    cells = layout.cells if layout else ()
    if plan.bidirectional or len({cell.units for cell in plan.cells}) == 1 or len(cells) != len(plan.cells):
        return _network(draft, layer, given, layout, plan, sequences=sequences, hold=not zero)
    if mask and plan.backwards:
        raise FormatError("cells of several sizes that go backwards under a mask are not supported")
    # A network for each cell: those above the first take the steps as they were processed. Where the mask leaves out
    # a step all stand still, as Keras' one cell of cells does
    for number, (stored, cell) in enumerate(zip(cells, plan.cells, strict=True), 1):
        top = number == len(plan.cells)
        one = replace(plan, cells=(cell,), backwards=plan.backwards and number == 1)
        below = layer if top else replace(layer, name=f"{layer.name}/cell{number}")
        given = _network(draft, below, given, keras_layer.Layout((stored,)), one, sequences=sequences or not top, hold=not zero)
    return given


def _network(
    draft: Draft,
    layer: Layer,
    given: Value,
    layout: keras_layer.Layout | None,
    plan: keras_config.Plan,
    *,
    sequences: bool,
    hold: bool,
) -> Value:
    """A step that runs one network, under the mask of the layer."""
    from fastlstm.models.layers import Recurrent, WholeSequence

    found = keras_layer.found(layer.name, layout, lambda: plan, draft.limit)
    if found.info is None or found.read is None or layout is None:
        raise FormatError(found.problem.removeprefix(f"layer {quoted(layer.name)}: "))
    features = replace(layer, inputs=[given]).features()
    if found.info.input_size != features:
        raise FormatError(f"its kernel has {found.info.input_size} rows, its input {features} features")
    draft.count([tensor for cell in layout.cells for tensor in cell.all()])
    units = found.info.hidden_size * (2 if plan.bidirectional and plan.merge_mode == "concat" else 1)
    shape = (given.shape[0], units) if sequences else (units,)
    if layer.mask is None and sequences:
        return draft.add(Recurrent, layer.name, [given], shape, weights=found.read(), batch_first=True)
    inputs = [given, *([layer.mask] if layer.mask else [])]
    more = {"weights": found.read(), "batch_first": True, "last": not sequences, "hold": hold}
    return draft.add(WholeSequence, layer.name, inputs, shape, layer.mask if sequences else None, **more)


def _outputs(entry: Entry, plan: keras_config.Plan) -> tuple[bool, bool]:
    """Whether a recurrent layer returns all steps, and whether those left out are zero."""
    config = config_of(entry)
    layers = [config]
    if plan.bidirectional:
        layers = [config_of(layer) for layer in (config["layer"], config.get("backward_layer")) if layer]
    if len({flag(layer, "return_sequences", False) for layer in layers}) > 1:
        raise FormatError("one direction has return_sequences, the other has not")
    sequences = flag(layers[0], "return_sequences", False)
    # Bidirectional sets the flag of its layers
    return sequences, sequences if plan.bidirectional else flag(config, "zero_output_for_mask", False)


def _layer_norm(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import LayerNorm

    layer.check_keys("axis", "epsilon", "center", "scale", "rms_scaling")
    given, features = layer.one_input(), layer.features()
    axis = layer.config.get("axis", -1)
    if axis not in (-1, [-1], len(given.shape), [len(given.shape)]):
        raise FormatError(f"it normalizes axis {shown(axis)}, and only the last is supported")
    if flag(layer.config, "rms_scaling", False):
        raise FormatError("its rms_scaling is not supported")
    names = [name for name, key in (("gamma", "scale"), ("beta", "center")) if flag(layer.config, key, True)]
    epsilon = _number(layer, "epsilon")
    if epsilon < 0:
        raise FormatError(f"epsilon must not be negative, got {epsilon}")
    arrays = draft.weights(layer, dict.fromkeys(names, (features,))) if names else []
    more = dict(zip(names, arrays, strict=True))
    return draft.add(LayerNorm, layer.name, [given], given.shape, layer.mask, epsilon=epsilon, **more)


def _batch_norm(draft: Draft, layer: Layer) -> Value:
    """What it has learned of the features: (x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    from fastlstm.models.layers import Affine

    training = ("momentum", "synchronized", "renorm", "renorm_clipping", "renorm_momentum")
    layer.check_keys("axis", "epsilon", "center", "scale", *training)
    given, features, axis = layer.one_input(), layer.features(), layer.config.get("axis", -1)
    if axis not in (-1, [-1], len(given.shape), [len(given.shape)]):
        raise FormatError(f"it normalizes axis {shown(axis)}, and only the last is supported")
    names = [name for name, key in (("gamma", "scale"), ("beta", "center")) if flag(layer.config, key, True)]
    names, epsilon = [*names, "moving_mean", "moving_variance"], _number(layer, "epsilon")
    arrays = dict(zip(names, draft.weights(layer, dict.fromkeys(names, (features,))), strict=True))
    mean, variance = arrays["moving_mean"], arrays["moving_variance"]
    if not (variance + epsilon > 0).all():
        raise FormatError(f"moving_variance and epsilon must add up to more than 0, got {(variance + epsilon).min()}")
    scale = (arrays.get("gamma", 1) / np.sqrt(variance + epsilon)).astype(mean.dtype)
    shift = arrays.get("beta", np.zeros_like(mean))
    return draft.add(Affine, layer.name, [given], given.shape, layer.mask, mean=mean, scale=scale, shift=shift)


def _over_time(largest: bool) -> Callable[[Draft, Layer], Value]:
    def make(draft: Draft, layer: Layer) -> Value:
        from fastlstm.models.layers import OverTime

        layer.check_keys("data_format", "keepdims")
        given, order = layer.one_input(2), layer.config.get("data_format", "channels_last")
        if order != "channels_last" or flag(layer.config, "keepdims", False):
            raise FormatError("it is supported only with data_format channels_last and without keepdims")
        mask = None if largest else layer.mask  # Keras' maximum is over all steps
        if mask and (mask.problem or len(mask.shape) != 1):
            raise FormatError(f"its mask is not supported: {mask.problem or 'it is no mask of time steps'}")
        return draft.add(OverTime, layer.name, [given, *([mask] if mask else [])], given.shape[1:], largest=largest)

    return make


def _skipped(draft: Draft, layer: Layer) -> Value:
    """At inference it returns what it takes."""
    return replace(layer.one_input(), mask=layer.mask)


def _activate(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Activate

    layer.check_keys("activation")
    given = layer.one_input()
    return draft.add(Activate, layer.name, [given], given.shape, layer.mask, activation=_activation(draft, layer))


def _softmax(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Activate

    layer.check_keys("axis")
    given = layer.one_input()
    if layer.config.get("axis", -1) not in (-1, len(given.shape)):
        raise FormatError(f"its axis {shown(layer.config['axis'])} is not the last, and only that is supported")
    if layer.mask:
        raise FormatError("a Softmax with a mask is not supported")
    return draft.add(Activate, layer.name, [given], given.shape, activation="softmax")


def _elu(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Activate

    layer.check_keys("alpha")
    given = layer.one_input()
    if _number(layer, "alpha", 1.0) != 1:
        raise FormatError("only alpha 1 is supported")
    return draft.add(Activate, layer.name, [given], given.shape, layer.mask, activation="elu")


def _relu(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import ReLU

    layer.check_keys("max_value", "negative_slope", "threshold")
    given = layer.one_input()
    most = None if layer.config.get("max_value") is None else _number(layer, "max_value")
    slope, threshold = (_number(layer, key, 0.0) for key in ("negative_slope", "threshold"))
    return draft.add(ReLU, layer.name, [given], given.shape, layer.mask, slope=slope, threshold=threshold, most=most)


def _leaky_relu(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import ReLU

    layer.check_keys("negative_slope", "alpha")  # the second in Keras 2
    given = layer.one_input()
    if ("negative_slope" in layer.config) == ("alpha" in layer.config):
        raise FormatError("its negative_slope is missing, or there twice")
    slope = _number(layer, "negative_slope" if "negative_slope" in layer.config else "alpha")
    return draft.add(ReLU, layer.name, [given], given.shape, layer.mask, slope=slope)


def _reshape(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Reshape

    layer.check_keys("target_shape")
    given, target = layer.one_input(), layer.config.get("target_shape")
    if not isinstance(target, list) or not len(target) < MAX_AXES or not all(n == -1 or is_size(n) for n in target):
        raise FormatError(f"target_shape must be a list of positive numbers and -1, got {shown(target)}")
    free = [index for index, size in enumerate(target) if size == -1]
    known = math.prod(size for size in target if size != -1)
    total = _total(given.shape)
    if len(free) > 1 or (total is not None and (total % known if free else total != known)):
        raise FormatError(f"target_shape {shown(target)} does not fit its input of shape {with_batch(given.shape)}")
    if free and total is not None:
        target = [total // known if size == -1 else size for size in target]
    shape = tuple(None if size == -1 else size for size in target)
    return draft.add(Reshape, layer.name, [given], shape, shape=tuple(target))


def _flatten(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import Reshape

    layer.check_keys("data_format")
    given, order = layer.one_input(), layer.config.get("data_format", "channels_last")
    if order != "channels_last":
        raise FormatError(f"its data_format must be channels_last, got {shown(order)}")
    total = _total(given.shape)
    return draft.add(Reshape, layer.name, [given], (total,), shape=(-1 if total is None else total,))


def _total(shape: Shape) -> int | None:
    sizes = [size for size in shape if size is not None]
    return math.prod(sizes) if len(sizes) == len(shape) else None


def _repeat(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import RepeatVector

    layer.check_keys("n")
    given, count = layer.one_input(1), _size(layer, "n")
    return draft.add(RepeatVector, layer.name, [given], (count, *given.shape), count=count)


def _time_distributed(draft: Draft, layer: Layer) -> Value:
    layer.check_keys("layer")
    given, inner = layer.one_input(), layer.config.get("layer")
    if not isinstance(inner, dict) or class_of(inner) not in FEATURES or len(given.shape) < 2:
        name = inner.get("class_name") if isinstance(inner, dict) else inner
        raise FormatError(f"it applies {shown(name)}, and only these are supported at each step: {', '.join(FEATURES)}")
    step = replace(given, shape=given.shape[1:])
    result = LAYERS[class_of(inner)](draft, Layer(layer.name, inner, layer.place.wrapped(), [step], mask=layer.mask))
    return replace(result, shape=(given.shape[0], *result.shape))


def _not_equal(draft: Draft, layer: Layer) -> Value:
    """An operation of Keras 3, by which masks are made; so are those that follow."""
    from fastlstm.models.layers import NotEqual

    if len(layer.inputs) != 1 or len(layer.constants) != 1 or not _is_number(layer.constants[0]):
        raise FormatError("NotEqual is supported only for a tensor and a number")
    return draft.add(NotEqual, layer.name, layer.inputs, layer.inputs[0].shape, value=layer.constants[0])


def _any(draft: Draft, layer: Layer) -> Value:
    from fastlstm.models.layers import AnyFeature

    layer.check_keys("axis", "keepdims")
    given = layer.one_input(2)
    if layer.config.get("axis") not in (-1, [-1]) or layer.config.get("keepdims"):
        raise FormatError("Any is supported only for the last axis")
    return draft.add(AnyFeature, layer.name, [given], given.shape[:1])


def _logical_or(draft: Draft, layer: Layer) -> Value:
    if len(layer.inputs) != 2 or layer.constants:
        raise FormatError("LogicalOr is supported only for two masks")
    return either(draft, layer.name, *layer.inputs)


def _expand_dims(draft: Draft, layer: Layer) -> Value:
    layer.check_keys("axis")
    if layer.config.get("axis") != -1:
        raise FormatError("ExpandDims is supported only for a new last axis")
    return last_axis(draft, layer.name, layer.one_input())


def _everywhere(value: bool) -> Callable[[Draft, Layer], Value]:
    def make(draft: Draft, layer: Layer) -> Value:
        from fastlstm.models.layers import Everywhere

        if layer.config.get("dtype") != "bool":
            raise FormatError("ZerosLike and OnesLike are supported only for masks")
        given = layer.one_input()
        return draft.add(Everywhere, layer.name, [given], given.shape, value=value)

    return make


LAYERS: dict[str, Callable[[Draft, Layer], Value]] = {
    **dict.fromkeys(("LSTM", "CuDNNLSTM", "RNN", "Bidirectional"), _recurrent),
    **dict.fromkeys(("Dropout", "SpatialDropout1D", "GaussianDropout", "AlphaDropout"), _skipped),
    **dict.fromkeys(("GaussianNoise", "ActivityRegularization"), _skipped),
    "Dense": _dense,
    "Embedding": _embedding,
    "Masking": _masking,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "GlobalAveragePooling1D": _over_time(largest=False),
    "GlobalMaxPooling1D": _over_time(largest=True),
    "Activation": _activate,
    "Softmax": _softmax,
    "ELU": _elu,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "RepeatVector": _repeat,
    **{name: merge(name.lower()) for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")},
    "Concatenate": concatenate,
    "TimeDistributed": _time_distributed,
    "NotEqual": _not_equal,
    "Any": _any,
    "LogicalOr": _logical_or,
    "ExpandDims": _expand_dims,
    "ZerosLike": _everywhere(False),
    "OnesLike": _everywhere(True),
}
# Those that TimeDistributed may apply: they work on the last axis, whatever there is before it
FEATURES = (
    *("Dense", "LayerNormalization", "BatchNormalization", "Activation", "Softmax", "ELU", "ReLU", "LeakyReLU"),
    *("Dropout", "GaussianDropout", "AlphaDropout", "GaussianNoise", "ActivityRegularization"),
)
