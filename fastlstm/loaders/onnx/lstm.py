"""From the nodes of an ONNX graph to LSTMs: attributes, shapes, the order of gates, and nodes that are layers of one network.

References
----------
https://onnx.ai/onnx/operators/onnx__LSTM.html, versions 7, 14 and 22, and ``com.microsoft.DynamicQuantizeLSTM`` in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fastlstm.arrays import Array
from fastlstm.cell import Activation, Cell
from fastlstm.errors import FormatError
from fastlstm.loaders.found import Found, LSTMInfo, quoted
from fastlstm.loaders.onnx.constants import NUMBERS_LIMIT, Call, Constants, NotConstant, Value, check_inside, read
from fastlstm.loaders.onnx.folding import dequantized
from fastlstm.loaders.onnx.graph import Scope, attributes, label
from fastlstm.loaders.onnx.sizes import Open, Size
from fastlstm.loaders.onnx.states import States
from fastlstm.loaders.tensors import STORED, handed_over, precision, to_floats, too_large
from fastlstm.weights import MAX_SIZE, LayerWeights, Weights

__all__ = ["ACTIVATIONS", "TAKES_ALPHA", "TAKES_BOTH", "Layer", "chains", "found", "layer"]

GATES = (0, 2, 3, 1)  # where i, f, g, o are in ONNX's i, o, f, c
PEEPHOLES = (0, 2, 1)  # where i, f, o are in ONNX's i, o, f

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
QUANTIZED_INPUTS = (*INPUTS, "W_scale", "W_zero_point", "R_scale", "R_zero_point")
KNOWN = {
    "activation_alpha": "floats",
    "activation_beta": "floats",
    "activations": "strings",
    "clip": "f",
    "direction": "s",
    "hidden_size": "i",
    "input_forget": "i",
}
DIRECTIONS = ("forward", "reverse", "bidirectional")

# ONNX Runtime reads them in any case
ACTIVATIONS = {
    "Relu": "relu",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "Affine": "affine",
    "LeakyRelu": "leaky_relu",
    "ThresholdedRelu": "thresholded_relu",
    "ScaledTanh": "scaled_tanh",
    "HardSigmoid": "hard_sigmoid",
    "Elu": "elu",
    "Softsign": "softsign",
    "Softplus": "softplus",
}
BY_LOWER_CASE = {name.lower(): ours for name, ours in ACTIVATIONS.items()}
DEFAULT_ACTIVATIONS = ["Sigmoid", "Tanh", "Tanh"]
TAKES_BOTH = ("affine", "scaled_tanh", "hard_sigmoid")  # alpha and beta
TAKES_ALPHA = (*TAKES_BOTH, "leaky_relu", "thresholded_relu", "elu")
NO_DEFAULTS = ("affine", "scaled_tanh")


@dataclass(frozen=True, eq=False)
class Layer:
    """One LSTM node, checked; its weights are not read yet. Shapes are ONNX's, gates first: W (D, 4*H, I), R (D, 4*H, H)."""

    node: Any
    scope: Scope
    W: Value
    R: Value
    B: Value | None
    P: Value | None
    initial: tuple[Value | None, Value | None]  # h and c, (D, B, H)
    given: bool  # whether the caller gives one of them: then the other may only be zeros
    direction: str
    cells: tuple[Cell, ...]
    layout: int
    dtype: str

    @property
    def name(self) -> str:
        return label(self.node)

    @property
    def input_size(self) -> int:
        return self.W.shape[2]

    @property
    def hidden_size(self) -> int:
        return self.R.shape[2]

    @property
    def weights(self) -> list[Value]:
        return [value for value in (self.W, self.R, self.B, self.P) if value is not None]

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for nodes that compute the same: equal constants are one object."""
        given = self.given and self.initial != (None, None)
        return self.W, self.R, self.B, self.P, self.initial, given, self.direction, self.cells, self.layout


# ---- One node ------------------------------------------------------------------------------------------------------------------


def layer(node: Any, scope: Scope, constants: Constants, opset: int, states: States | None = None) -> Layer:
    """Check an LSTM or DynamicQuantizeLSTM node, and find its initial states with ``states``; without they are as any input.

    Raises
    ------
    FormatError
        If it cannot be read exactly; the message names the node.
    """
    try:
        return _layer(node, scope, constants, opset, states)
    except FormatError as error:
        raise FormatError(f"LSTM node {quoted(label(node))} {error}") from None


def _layer(node: Any, scope: Scope, constants: Constants, opset: int, states: States | None) -> Layer:
    quantized = node.op_type == "DynamicQuantizeLSTM"
    if opset < 7:
        raise FormatError(f"is of operator set {opset}: convert the model to 7 or newer with onnx.version_converter")
    if len(node.input) > len(QUANTIZED_INPUTS if quantized else INPUTS) or len(node.output) > 3:
        raise FormatError(f"has {len(node.input)} inputs and {len(node.output)} outputs")
    try:
        given = attributes(node, KNOWN if quantized or opset < 14 else {**KNOWN, "layout": "i"})
    except FormatError as error:
        raise FormatError(f"of operator set {opset}: {error}") from None
    direction = given.get("direction", b"forward").decode("utf-8", "replace")
    if direction not in DIRECTIONS:
        raise FormatError(f"has direction {quoted(direction)}; expected one of {', '.join(DIRECTIONS)}")
    layout, H = given.get("layout", 0), given.get("hidden_size", 0)
    if layout not in (0, 1):
        raise FormatError(f"has layout {layout}; expected 0 or 1")
    if not 1 <= H <= MAX_SIZE:
        raise FormatError(f"has {f'hidden_size {H}' if 'hidden_size' in given else 'no hidden_size'}; expected 1 to {MAX_SIZE}")
    D = 2 if direction == "bidirectional" else 1
    cells = _cells(given, D)

    state = (D, -1, H) if layout == 0 else (-1, D, H)
    values, given_state = _constants(node, scope, constants, states, state)
    W, R, initial = values["W"], values["R"], (values["initial_h"], values["initial_c"])
    if W is None or R is None:
        raise FormatError(f"lacks {'W' if W is None else 'R'}")
    dtype = W.dtype
    if quantized:
        W, R = (_dequantized(name, values, constants) for name in ("W", "R"))
    for name, value, expected in (
        ("W", W, (D, 4 * H, -1)),
        ("R", R, (D, 4 * H, H)),
        ("B", values["B"], (D, 8 * H)),
        ("P", values["P"], (D, 3 * H)),
        ("initial_h", initial[0], state),
        ("initial_c", initial[1], state),
    ):
        _check(name, value, expected, W.dtype)
    if states is not None:
        h, c = (None if value is None or states.is_zero(value) else value for value in initial)
        initial = h, c
        _check_lengths(node, scope, constants, layout)
    if node.output and node.output[0]:
        T, B = _lengths(node, scope, constants, layout)
        constants.sizes.note(scope, node.output[0], (T, D, B, H) if layout == 0 else (B, T, D, H))
    return Layer(node, scope, W, R, values["B"], values["P"], initial, given_state, direction, cells, layout, dtype)


def _check_lengths(node: Any, scope: Scope, constants: Constants, layout: int) -> None:
    """Lengths that the model fixes would be lost: a caller gives them at each call. Those of whole sequences say nothing."""
    name = node.input[4] if len(node.input) > 4 else ""
    try:
        lengths = read(constants.get(scope, name), NUMBERS_LIMIT) if name else None
    except NotConstant:
        return
    except FormatError as error:
        raise FormatError(f"cannot be read, because of its sequence_lens: {error}") from None
    if lengths is not None and set(lengths.flat) - {_lengths(node, scope, constants, layout)[0]}:
        raise FormatError(
            "has constant sequence_lens: make them an input of the model and pass lengths= at each call, or run the whole model "
            "with fastlstm.load_model"
        )


def _lengths(node: Any, scope: Scope, constants: Constants, layout: int) -> tuple[Size, Size]:
    """The steps and the rows of X, as far as they are known; rows of a state are as many."""
    x = constants.sizes.shape(scope, node.input[0])
    if x is None or len(x) != 3:
        x = constants.sizes.unknown(scope, node.input[0], 3)
    T, B = x[layout], x[1 - layout]
    for name in node.input[5:7]:
        state = constants.sizes.shape(scope, name) if name else None
        if state is not None and len(state) == 3 and isinstance(state[1 - layout], int):
            B = state[1 - layout]
    return T, B


def _constants(
    node: Any, scope: Scope, constants: Constants, states: States | None, shape: tuple[int, ...]
) -> tuple[dict[str, Value | None], bool]:
    """The constants by ONNX's names of the inputs, and whether a state is the caller's to give."""
    values: dict[str, Value | None] = dict.fromkeys(QUANTIZED_INPUTS)
    given = False
    for name, tensor in zip(QUANTIZED_INPUTS, node.input, strict=False):
        if not tensor or name in ("X", "sequence_lens"):
            continue
        try:
            if not name.startswith("initial"):
                values[name] = constants.get(scope, tensor)
            elif states is not None:
                values[name] = states.find(scope, tensor, shape)
                given |= values[name] is None
        except NotConstant as error:
            raise FormatError(f"has no constant {name}: {error}") from None
        except FormatError as error:
            raise FormatError(f"cannot be read, because of its {name}: {error}") from None
    return values, given


def _sizes(expected: tuple[int, ...], unknown: str) -> str:
    return f"({', '.join(unknown if size < 0 else str(size) for size in expected)})"


def _dequantized(name: str, values: dict[str, Value | None], constants: Constants) -> Value:
    """W or R of DynamicQuantizeLSTM as LSTM has them: stored are (D, I, 4*H) and a scale per direction, or per gate and unit."""
    stored, scale, zero = (values[name + end] for end in ("", "_scale", "_zero_point"))
    assert stored is not None
    if scale is None or zero is None or len(stored.shape) != 3:
        raise FormatError(f"needs {name} with 3 dimensions, {name}_scale and {name}_zero_point")
    D, columns, rows = stored.shape
    view = Value((D, rows, columns), stored.dtype, lambda array: array.transpose(0, 2, 1), (stored,), False, stored.depth + 1)
    turned = constants.make(("turned", id(stored)), view)
    try:
        return dequantized(constants, turned, scale, zero, (D, rows if len(scale.shape) == 2 else 1, 1))
    except FormatError as error:
        raise FormatError(f"cannot be read, because of its {name}: {error}") from None


def _check(name: str, value: Value | None, expected: tuple[int, ...], dtype: str) -> None:
    """Refuse a wrong shape, where -1 stands for any size, or dtype."""
    if value is None:
        return
    fits = len(value.shape) == len(expected) and all(
        size == wanted or wanted < 0 <= size for size, wanted in zip(value.shape, expected, strict=True)
    )
    if not fits or (name == "W" and value.shape[2] < 1):
        shape = _sizes(expected, "I" if name == "W" else "B")
        raise FormatError(f"has {name} of shape {value.shape!s:.100}; by hidden_size and direction {shape} is expected")
    if value.dtype not in STORED or value.dtype != dtype:
        kind = dtype if dtype in STORED else f"one of {', '.join(STORED)}"
        raise FormatError(f"has {name} of {value.dtype}; expected {kind}")


def _cells(given: dict[str, Any], D: int) -> tuple[Cell, ...]:
    names = [name.decode("utf-8", "replace") for name in given.get("activations", [])] or DEFAULT_ACTIVATIONS * D
    if len(names) != 3 * D:
        raise FormatError(f"has {len(names)} activations; expected {3 * D}")
    # Each function takes the next values of those that it has
    alphas, betas = (given.get(name, []) for name in ("activation_alpha", "activation_beta"))
    alpha, beta = iter(alphas), iter(betas)
    functions = [_activation(name, alpha, beta) for name in names]
    for what, rest in (("activation_alpha", alpha), ("activation_beta", beta)):
        if next(rest, None) is not None:
            raise FormatError(f"has more values of {what} than its activations {', '.join(map(quoted, names))} take")
    input_forget, clip = given.get("input_forget", 0), given.get("clip", math.inf)
    if input_forget not in (0, 1):
        raise FormatError(f"has input_forget {input_forget}; expected 0 or 1")
    if not clip > 0:
        raise FormatError(f"has clip {clip}; expected a positive number")
    coupled: Literal["forget"] | None = "forget" if input_forget else None
    bound = None if clip == math.inf else clip
    triples = zip(*(functions[start::3] for start in range(3)), strict=True)
    return tuple(Cell(f, g, h, coupled=coupled, gate_clip=bound) for f, g, h in triples)


def _activation(name: str, alpha: Iterator[float], beta: Iterator[float]) -> Activation:
    function = BY_LOWER_CASE.get(name.lower())
    if function is None:
        raise FormatError(f"has the activation {quoted(name)}, which is none of ONNX's")
    takes = [values for values, takers in ((alpha, TAKES_ALPHA), (beta, TAKES_BOTH)) if function in takers]
    parameters = [value for value in (next(values, None) for values in takes) if value is not None]
    if len(parameters) < len(takes) and (parameters or function in NO_DEFAULTS):
        raise FormatError(f"has too few values in activation_alpha or activation_beta for {name}")
    try:
        return Activation(function, tuple(parameters))
    except ValueError as error:
        raise FormatError(f"has a wrong activation: {error}") from None


# ---- Networks ------------------------------------------------------------------------------------------------------------------

BETWEEN = ("Dropout", "Identity", "Reshape", "Squeeze", "Transpose")
MAX_BETWEEN = 8
MODULE = "pkg.torch.onnx.name_scopes"  # metadata of a node


def chains(layers: Sequence[Layer], constants: Constants) -> list[list[Layer]]:
    """The layers, those together that are one network of several layers.

    That is so where a node's output goes to the next node and nowhere else, with its axis of directions folded, and both are
    alike in all that a network has once. Nodes with paths as names (``/encoder/rnn/LSTM_1``) must be of one module.
    """
    outputs = {(id(each.scope), name): each for each in layers for name in each.node.output[:1] if name}
    result: list[list[Layer]] = []
    ends: dict[int, list[Layer]] = {}  # the chain that ends with a layer
    for each in layers:  # a node comes after all that it reads, or else begins a chain
        before = _before(each, outputs, constants)
        chain = ends.pop(id(before), None) if before is not None else None
        if chain is None:
            chain = []
            result.append(chain)
        chain.append(each)
        ends[id(each)] = chain
    return result


def _before(layer: Layer, outputs: dict[tuple[int, str], Layer], constants: Constants) -> Layer | None:
    """The layer below, if there is one in the same network."""
    scope, path, name = layer.scope, list[tuple[Any, str]](), layer.node.input[0]
    while len(path) <= MAX_BETWEEN and scope.uses[name] == 1:
        below = outputs.get((id(scope), name))
        if below is not None:
            return below if _alike(below, layer) and _folded(below, path[::-1], constants) else None
        node, output = scope.producers.get(name, (None, 0))
        if node is None or output or node.op_type not in BETWEEN or node.domain not in ("", "ai.onnx") or not node.input:
            return None
        path.append((node, name))
        name = node.input[0]
    return None


def _alike(below: Layer, layer: Layer) -> bool:
    def what(each: Layer) -> tuple[object, ...]:
        lengths = [*each.node.input[4:5], ""][0]
        return each.hidden_size, each.direction, each.dtype, each.layout, lengths, _module(each.node)

    return what(below) == what(layer) and layer.input_size == len(below.cells) * below.hidden_size


def _module(node: Any) -> tuple[str, ...]:
    """Where a node comes from, as PyTorch's exporters write it: in its name, or beside it."""
    return node.name.rpartition("/")[0], *(entry.value for entry in node.metadata_props if entry.key == MODULE)


def _folded(below: Layer, path: Sequence[tuple[Any, str]], constants: Constants) -> bool:
    """Whether the nodes of the path turn Y, (T, D, B, H) or (B, T, D, H), into X for a next layer, (T, B, D*H) or (B, T, D*H)."""
    axes = list("TDBH" if below.layout == 0 else "BTDH")
    sizes = dict(zip(axes, constants.sizes.shape(below.scope, below.node.output[0]) or (), strict=True))
    try:
        for node, name in path:
            if node.op_type == "Reshape":
                axes = _joined(node, axes, sizes, below.scope, constants)
            else:
                inputs = [constants.get(below.scope, given) for given in node.input[1:] if given]
                axes = _axes(Call(constants, node, name, 0, [None, *inputs]), axes, below)
    except FormatError:
        return False
    start = ["T", "B"] if below.layout == 0 else ["B", "T"]
    return axes == [*start, "DH"] or (len(below.cells) == 1 and axes == [*start, "H"])


def _axes(call: Call, axes: list[str], below: Layer) -> list[str]:
    """The axes after a node; none if it does anything but move them, or take away a D of size 1."""
    operator, D = call.node.op_type, len(below.cells)
    if operator == "Transpose":
        perm = call.attributes(perm="ints").get("perm", [])
        return [axes[axis] for axis in perm] if sorted(perm) == list(range(len(axes))) else []
    if operator == "Squeeze":
        gone = call.numbers(1, call.attributes(axes="ints").get("axes"))
        place = axes.index("D") if D == 1 and "D" in axes else None
        return [axis for axis in axes if axis != "D"] if place is not None and gone in ([place], [place - len(axes)]) else []
    return axes if len(call.inputs) < 3 else []  # Identity, and Dropout if nothing tells it to train


def _joined(node: Any, axes: list[str], sizes: Mapping[str, Size], scope: Scope, constants: Constants) -> list[str]:
    """The axes after a Reshape that joins D and H; none if it is not certain that it does just that.

    A D of size 1 may stand anywhere: simplifiers leave out the Squeeze or Transpose before.
    A Reshape keeps the number of elements. So if all sizes but one are certain, that one is, too.
    """
    zeros = attributes(node, {"allowzero": "i"}).get("allowzero")
    given = constants.sizes.numbers(scope, node.input[1]) if len(node.input) == 2 else None
    before = axes
    if sizes["D"] == 1 and len(axes) == 4 and axes[3] == "H":
        axes = [*(axis for axis in axes if axis not in ("D", "H")), "D", "H"]
    if axes[2:] != ["D", "H"] or given is None or given.shape != (3,):
        return []
    expected = [sizes[axes[0]], sizes[axes[1]], sizes["D"] * sizes["H"]]
    copied = [not zeros and each == axis for each, axis in zip(before, axes[:2], strict=False)]  # by a size of 0
    others = [
        (size, wanted)
        for place, (size, wanted) in enumerate(zip(given, expected, strict=True))
        if size != wanted and not (size == 0 and place < 2 and copied[place])
    ]
    certain = all(size == -1 or isinstance(size, Open) or (size > 0 and isinstance(wanted, Open)) for size, wanted in others)
    return [*axes[:2], "DH"] if len(others) < 2 and certain else []


def found(
    chain: Sequence[Layer], name: str, aliases: tuple[str, ...], limit: int, room: int, batch_first: bool | None = None
) -> Found:
    """Describe a network whose weights may take ``limit`` bytes, and ``room`` while they are computed.

    Of weights in another file that may not be read there are sizes, a problem, and nothing to limit.
    """
    first = chain[0]
    parts = [part for each in chain for part in each.weights]
    size = sum(math.prod(part.shape) for part in parts) * precision(first.dtype).itemsize
    outside = _outside(chain)
    if size > limit and not outside:
        problem = too_large(f"the weights of LSTM node {quoted(first.name)}", size, limit)
        return Found(name, problem=problem, aliases=aliases)
    info = LSTMInfo(
        name,
        first.input_size,
        first.hidden_size,
        len(chain),
        len(first.cells) == 2,
        0,
        any(each.B for each in chain),
        first.dtype,
        first.layout == 1 if batch_first is None else batch_first,
        outside and f"LSTM node {quoted(first.name)}: {outside}",
    )
    return Found(name, info, lambda: _weights(chain, room - size), aliases=aliases)


def _outside(chain: Sequence[Layer]) -> str:
    """Why numbers cannot be read, if they are in another file."""
    try:
        for each in chain:
            check_inside(*each.weights, *(value for value in each.initial if value is not None))
    except FormatError as error:
        return str(error)
    return ""


def _weights(chain: Sequence[Layer], room: int) -> Weights:
    bias, peephole = any(each.B for each in chain), any(each.P for each in chain)
    kind = precision(chain[0].dtype)
    records, initial = list[LayerWeights](), False
    outside = _outside(chain)
    if outside:  # before anything of it is read
        raise FormatError(f"LSTM node {quoted(chain[0].name)}: {outside}")
    for each in chain:
        H = each.hidden_size
        try:
            read_matrix = _ordered if each.dtype in STORED else _from_8_bits
            W, R = (read_matrix(value, GATES, room) for value in (each.W, each.R))
            zeros = [handed_over(np.zeros(n * H, kind)) for n in (8, 3, 1)]
            B = _ordered(each.B, (*GATES, *(4 + gate for gate in GATES)), room) if each.B else zeros[:1] * len(W)
            P = _ordered(each.P, PEEPHOLES, room) if each.P else zeros[1:2] * len(W)
            h, c = (_state(value, each.layout, room) if value else zeros[2:] * len(W) for value in each.initial)
        except FormatError as error:
            raise FormatError(f"LSTM node {quoted(each.name)}: {error}") from None
        for d, cell in enumerate(each.cells):
            b_ih, b_hh = (handed_over(half.copy()) if bias else None for half in np.split(B[d], 2))
            w_ih, w_hh, p = map(handed_over, (W[d], R[d], P[d]))
            records.append(LayerWeights(w_ih, w_hh, b_ih, b_hh, None, p if peephole else None, h[d], c[d], cell))
            initial |= bool(h[d].any() or c[d].any())
    if initial and any(each.given for each in chain):
        raise FormatError(
            f"LSTM node {quoted(chain[0].name)}: one initial state is a constant that is not zero, another is given at run time; "
            "both or neither expected"
        )
    if not initial:  # zeros are what there is without any
        records = [replace(record, h_0=None, c_0=None) for record in records]
    return Weights(tuple(records), len(chain[0].cells) == 2, chain[0].direction == "reverse")


def _ordered(value: Value, order: Sequence[int], room: int) -> list[Array]:
    """For each direction the blocks of its rows in that order, as new float32 or float64 arrays."""
    result = []
    for rows in read(value, room):
        n = len(rows) // len(order)
        array: Array = np.empty(rows.shape, precision(value.dtype))
        for index, place in enumerate(order):
            array[index * n : (index + 1) * n] = to_floats(rows[place * n : (place + 1) * n], value.dtype)
        result.append(array)
    return result


def _from_8_bits(value: Value, order: Sequence[int], room: int) -> list[Array]:
    """The same of what :func:`_dequantized` describes, computed in place: there is no room for a second matrix of floats."""
    stored, *factors = value.inputs
    arrays = _ordered(stored, order, room)
    D, rows = stored.shape[:2]
    spread = (np.broadcast_to(read(each, room).reshape(D, -1), (D, rows)).reshape(D, len(order), -1) for each in factors)
    scale, zero = (each[:, list(order)].reshape(D, rows, 1) for each in spread)
    for d, array in enumerate(arrays):
        array -= zero[d]
        array *= scale[d]
    return arrays


def _state(value: Value, layout: int, room: int) -> list[Array]:
    """The state of each direction, if it is the same for all rows."""
    rows = read(value, room).swapaxes(0, layout)  # (D, B, H)
    if rows.shape[1] < 1 or (rows != rows[:, :1]).any():
        raise FormatError(f"a constant initial state of shape {value.shape}, not one for all rows of a batch; make it an input")
    return [handed_over(to_floats(row[0], value.dtype)) for row in rows]
