"""One adapter per engine, all with the same methods, one for each mode.

An adapter is made from a case: that builds the network. A method does what a program would do once, such as binding buffers, and
returns the call that is timed; ``arrays`` turns what the call returned into NumPy arrays. Every engine is used in the fastest way
its documentation offers: outputs of whole sequences go to one array, bound once or given as `out=`, where the engine can do that.
"""

from __future__ import annotations

import importlib.util
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

import fastlstm
from bench.cases import Case
from fastlstm.weights import Weights

Call = Callable[[], Any]
Arrays = tuple[np.ndarray, ...]  # output, h_n, c_n; of training also the gradients of x, h_0, c_0 and every parameter

TOLERANCE = 1e-5  # of the largest number, at least of 1


class Unsupported(Exception):
    """The engine has no way to run this case; the message says why."""


class Engine(ABC):
    """A network in one engine."""

    title: str
    modules: tuple[str, ...]
    case: Case

    @abstractmethod
    def __init__(self, case: Case, threads: int) -> None: ...

    @abstractmethod
    def forward(self) -> Call:
        """Whole sequences with a state."""

    @abstractmethod
    def ragged(self) -> Call:
        """Whole sequences with a state and lengths."""

    @abstractmethod
    def step(self) -> Call:
        """One step with a state."""

    @abstractmethod
    def stream(self) -> Call:
        """At each call the next step; the state is carried."""

    @abstractmethod
    def train(self) -> Call:
        """Whole sequences with a state, then every gradient."""

    @abstractmethod
    def train_ragged(self) -> Call:
        """The same with lengths."""

    @abstractmethod
    def train_resets(self) -> Call:
        """The same with resets."""

    @abstractmethod
    def arrays(self, result: Any) -> Arrays:
        """What a call returned."""


class FastLSTM(Engine):
    title = "fastlstm"
    modules = ("fastlstm",)

    def __init__(self, case: Case, threads: int) -> None:
        fastlstm.set_num_threads(threads)
        self.case = case
        self.lstm = fastlstm.LSTM.from_weights(case.weights)

    def forward(self) -> Call:
        lstm, x, state = self.lstm, self.case.x, self.case.state
        out = np.empty((*x.shape[:2], lstm.output_size), x.dtype)  # bound once, as the ONNX engines' are
        return lambda: lstm(x, state, out=out)

    def ragged(self) -> Call:
        lstm, x, state, lengths = self.lstm, self.case.x, self.case.state, self.case.lengths
        out = np.empty((*x.shape[:2], lstm.output_size), x.dtype)
        return lambda: lstm(x, state, lengths=lengths, out=out)

    def step(self) -> Call:
        lstm, x, state = self.lstm, self.case.x, self.case.state
        return lambda: lstm(x, state)

    def stream(self) -> Call:
        stream, steps = self.lstm.stream(self.case.shape.B), itertools.cycle(self.case.x)
        self.carried = stream
        return lambda: stream.step(next(steps))

    def train(self, **options: Any) -> Call:
        lstm, x, state, d_output = self.lstm, self.case.x, self.case.state, self.case.d_output

        def call() -> Any:
            tape = lstm.record(x, state, **options)
            return tape, tape.backward(d_output)

        return call

    def train_ragged(self) -> Call:
        return self.train(lengths=self.case.lengths)

    def train_resets(self) -> Call:
        return self.train(resets=self.case.resets)

    def arrays(self, result: Any) -> Arrays:
        if self.case.mode.startswith("train"):
            tape, grads = result
            return tape.output, *tape.state, grads.input, *grads.state, *grads.parameters.values()
        output, (h, c) = (result[None], self.carried.state) if self.case.mode == "stream" else result
        return output, h, c


class Torch(Engine):
    """torch.nn.LSTM, in inference mode or under autograd; packed sequences for lengths, one call for each stretch without resets,
    torch.nn.LSTMCell for single steps where it can."""

    title = "PyTorch"
    modules = ("torch",)

    def __init__(self, case: Case, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.case = torch, case
        options = {"bidirectional": case.weights.bidirectional, "proj_size": case.weights.proj_size}
        self.lstm = torch.nn.LSTM(case.weights.input_size, case.weights.hidden_size, case.weights.num_layers, **options).eval()
        self.lstm.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in case.weights.named_tensors()})
        self.x = torch.from_numpy(case.x)
        self.state = tuple(torch.from_numpy(array) for array in case.state)
        self.network: Callable[..., Any] = self.lstm

    def forward(self) -> Call:
        network, x, state = self.network, self.x, self.state
        return self.torch.inference_mode()(lambda: network(x, state))

    def ragged(self) -> Call:
        pack, pad = self.torch.nn.utils.rnn.pack_padded_sequence, self.torch.nn.utils.rnn.pad_packed_sequence
        network, x, state, lengths = self.network, self.x, self.state, self.torch.from_numpy(self.case.lengths)

        @self.torch.inference_mode()
        def call() -> Any:
            packed, last = network(pack(x, lengths, enforce_sorted=False), state)
            return pad(packed, total_length=len(x))[0], last

        return call

    def step(self) -> Call:
        step, x, state = self.one_step(), self.x[0], self.state
        return self.torch.inference_mode()(lambda: step(x, state))

    def stream(self) -> Call:
        step, steps = self.one_step(), itertools.cycle(self.x)
        state = tuple(self.torch.zeros_like(array) for array in self.state)

        @self.torch.inference_mode()
        def call() -> Any:
            nonlocal state
            result = step(next(steps), state)
            state = result[1]
            return result

        return call

    def train(self) -> Call:
        network = self.network
        return self.with_gradients(lambda x, state: network(x, state))

    def train_ragged(self) -> Call:
        pack, pad = self.torch.nn.utils.rnn.pack_padded_sequence, self.torch.nn.utils.rnn.pad_packed_sequence
        network, lengths = self.network, self.torch.from_numpy(self.case.lengths)

        def forward(x: Any, state: Any) -> Any:
            packed, last = network(pack(x, lengths, enforce_sorted=False), state)
            return pad(packed, total_length=len(x))[0], last

        return self.with_gradients(forward)

    def train_resets(self) -> Call:
        network, resets, cat = self.network, self.case.resets, self.torch.cat
        begins = [0, *(t for t in range(1, len(resets)) if resets[t].any())]
        ends = [*begins[1:], len(resets)]
        kept = [self.torch.from_numpy(~resets[t, :, None]).float() for t in begins]

        def forward(x: Any, state: Any) -> Any:
            outputs = []
            for begin, end, keep in zip(begins, ends, kept, strict=True):
                output, state = network(x[begin:end], (state[0] * keep, state[1] * keep))
                outputs.append(output)
            return cat(outputs), state

        return self.with_gradients(forward)

    def with_gradients(self, forward: Callable[..., Any]) -> Call:
        """A forward pass under autograd, and then the gradients of everything, which are not added to any before."""
        network = self.lstm.train()
        x, (h, c) = self.x.clone().requires_grad_(), (s.clone().requires_grad_() for s in self.state)
        leaves = (x, h, c, *(network.get_parameter(name) for name, _ in self.case.weights.named_tensors()))
        grad, d_output = self.torch.autograd.grad, self.torch.from_numpy(self.case.d_output)

        def call() -> Any:
            output, last = forward(x, (h, c))
            return output, last, grad(output, leaves, d_output)

        return call

    def one_step(self) -> Callable[..., Any]:
        """A function of x (B, I) and (h, c) for single steps; h and c are sequences of the layers' states."""
        weights = self.case.weights
        if weights.proj_size or weights.bidirectional or self.network is not self.lstm:
            network = self.network
            return lambda x, state: network(x[None], state)
        cells = []
        for layer, inputs in enumerate((weights.input_size, *[weights.hidden_size] * (weights.num_layers - 1))):
            cell = self.torch.nn.LSTMCell(inputs, weights.hidden_size)
            for name, _ in list(cell.named_parameters()):
                setattr(cell, name, getattr(self.lstm, f"{name}_l{layer}"))
            cells.append(cell)

        def step(x: Any, state: Any) -> Any:
            h_n, c_n = [], []
            for cell, h, c in zip(cells, *state, strict=True):
                x, c_next = cell(x, (h, c))
                h_n.append(x)
                c_n.append(c_next)
            return x[None], (h_n, c_n)

        return step

    def arrays(self, result: Any) -> Arrays:
        if self.case.mode.startswith("train"):
            output, last, gradients = result
            return tuple(tensor.detach().numpy() for tensor in (output, *last, *gradients))
        output, state = result
        h, c = (self.torch.stack(part) if isinstance(part, list) else part for part in state)
        return output.numpy(), h.numpy(), c.numpy()


class TorchCompile(Torch):
    """torch.compile with the two settings without which it leaves LSTMs alone; it packs the weights then."""

    title = "torch.compile"

    def __init__(self, case: Case, threads: int) -> None:
        super().__init__(case, threads)
        if case.mode == "ragged":
            raise Unsupported("packed sequences are not compiled")
        if case.mode.startswith("train"):
            raise Unsupported("the weights it packs are frozen, and have no gradients")
        import torch._dynamo
        import torch._inductor.config

        torch._dynamo.config.allow_rnn = True
        torch._inductor.config.freezing = True
        torch._dynamo.reset()
        self.network = torch.compile(self.lstm)


class OnnxEngine(Engine):
    """What the two engines that read ONNX share: fixed buffers by name, bound before the call."""

    def __init__(self, case: Case, threads: int) -> None:
        if case.mode.startswith("train"):
            raise Unsupported("runs networks and does not train them")
        if case.shape.P:
            raise Unsupported("ONNX's LSTM has no projection")
        self.case = case
        self.bound: list[Any] = []
        self.load(onnx_model(case.weights, case.shape.T, case.shape.B, case.mode == "ragged"), threads)
        shape = case.shape
        self.output = np.full((shape.T, shape.B, shape.D * shape.H), np.nan, np.float32)
        self.states = [tuple(np.zeros_like(array) for array in case.state) for _ in range(2)]

    @abstractmethod
    def load(self, model: bytes, threads: int) -> None:
        """Make the network."""

    @abstractmethod
    def bind(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Call:
        """A call that reads and writes these buffers."""

    def forward(self) -> Call:
        lengths = {"lengths": self.case.lengths.astype(np.int32)} if self.case.mode == "ragged" else {}
        return self.between(self.case.x, self.case.state, self.states[0], lengths)

    def ragged(self) -> Call:
        return self.forward()

    def step(self) -> Call:
        return self.forward()

    def stream(self) -> Call:
        x, steps = np.zeros_like(self.case.x[:1]), itertools.cycle(self.case.x)
        there, back = self.states
        calls = itertools.cycle((self.between(x, there, back), self.between(x, back, there)))

        def call() -> Any:
            np.copyto(x[0], next(steps))
            return next(calls)()

        return call

    def train(self) -> Call:
        raise AssertionError("refused when it was made")

    train_ragged = train_resets = train

    def between(self, x: np.ndarray, before: Any, after: Any, more: dict[str, np.ndarray] | None = None) -> Call:
        inputs = {"x": x, "h_0": before[0], "c_0": before[1], **(more or {})}
        outputs = {"output": self.output, "h_n": after[0], "c_n": after[1]}
        self.bound.append((inputs, outputs))  # engines only borrow buffers
        run, result = self.bind(inputs, outputs), tuple(outputs.values())

        def call() -> Any:
            run()
            return result

        return call

    def arrays(self, result: Any) -> Arrays:
        output, h, c = (array.copy() for array in result)
        return output, h, c


class OnnxRuntime(OnnxEngine):
    title = "ONNX Runtime"
    modules = ("onnxruntime", "onnx")

    def load(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def bind(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Call:
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", element_type=array.dtype, shape=array.shape, buffer_ptr=array.ctypes.data)
        run = self.session.run_with_iobinding
        return lambda: run(binding)


class OpenVino(OnnxEngine):
    title = "OpenVINO"
    modules = ("openvino", "onnx")

    def load(self, model: bytes, threads: int) -> None:
        import openvino

        core = openvino.Core()
        hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self.openvino = openvino
        self.compiled = core.compile_model(core.read_model(model), "CPU", hints)

    def bind(self, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> Call:
        request = self.compiled.create_infer_request()
        for name, array in (inputs | outputs).items():
            request.set_tensor(name, self.openvino.Tensor(array, shared_memory=True))
        return lambda: request.infer()


ENGINES: dict[str, type[Engine]] = {
    "fastlstm": FastLSTM,
    "torch": Torch,
    "torch.compile": TorchCompile,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
USUAL = tuple(name for name in ENGINES if name != "torch.compile")  # it compiles each shape for seconds


def missing_modules(name: str) -> list[str]:
    """The modules an engine needs that are not installed."""
    return [module for module in ENGINES[name].modules if importlib.util.find_spec(module) is None]


def call_of(engine: Engine, mode: str) -> Call:
    """The call of a mode, named as the mode is."""
    call: Call = getattr(engine, mode.replace("-", "_"))()
    return call


def results(engine: Engine, call: Call) -> Arrays:
    """What a call returns; of a stream, the outputs of its first steps and the state after them."""
    if engine.case.mode != "stream":
        return engine.arrays(call())
    steps = [engine.arrays(call()) for _ in range(4)]
    return np.concatenate([output for output, _, _ in steps]), *steps[-1][1:]


def difference(given: Arrays, expected: Arrays) -> float:
    """The largest difference, as a part of ``TOLERANCE`` of the largest number (at least of 1); infinite if shapes differ."""
    worst = 0.0
    for a, b in zip(given, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        error = np.max(np.abs(a - b), initial=0.0) / (TOLERANCE * np.max(np.abs(b), initial=1.0))
        worst = max(worst, float("inf") if np.isnan(error) else float(error))
    return worst


# ---- ONNX ----------------------------------------------------------------------------------------------------------------------


def onnx_model(weights: Weights, T: int, B: int, ragged: bool = False) -> bytes:
    """An ONNX model of the network, for one T and B: engines are given everything they can know beforehand.

    Inputs are x (T, B, I), h_0 and c_0 (L*D, B, H), and lengths (B,) of int32 if `ragged`; outputs are output (T, B, D*H), h_n
    and c_n, all as PyTorch has them. A layer is one LSTM node; its output's direction axis is folded into the last.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    L, D, H = weights.num_layers, weights.num_directions, weights.hidden_size
    constants = {"folded": np.array([T, B, D * H], np.int64)}
    nodes = []
    h_0, c_0, h_n, c_n = (
        [f"{name}_l{layer}" for layer in range(L)] if L > 1 else [name] for name in ("h_0", "c_0", "h_n", "c_n")
    )
    if L > 1:
        nodes += [helper.make_node("Split", [name], parts, num_outputs=L) for name, parts in (("h_0", h_0), ("c_0", c_0))]
    x = "x"
    for layer in range(L):
        names = [f"{name}_l{layer}" for name in ("W", "R", "B")]
        constants |= zip(names, onnx_weights(weights, layer), strict=True)
        inputs = [x, *names, "lengths" if ragged else "", h_0[layer], c_0[layer]]
        y, x = f"Y_l{layer}", "output" if layer == L - 1 else f"x_l{layer + 1}"
        direction = "bidirectional" if D == 2 else "forward"
        nodes.append(helper.make_node("LSTM", inputs, [y, h_n[layer], c_n[layer]], hidden_size=H, direction=direction))
        if D == 2:
            nodes.append(helper.make_node("Transpose", [y], [f"{y}_t"], perm=[0, 2, 1, 3]))
            y += "_t"
        nodes.append(helper.make_node("Reshape", [y, "folded"], [x]))
    if L > 1:
        nodes += [helper.make_node("Concat", parts, [name], axis=0) for name, parts in (("h_n", h_n), ("c_n", c_n))]

    def declare(shapes: dict[str, tuple[int, ...]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    state = (L * D, B, H)
    inputs_of_graph = declare({"x": (T, B, weights.input_size), "h_0": state, "c_0": state})
    if ragged:
        inputs_of_graph.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (B,)))
    outputs = declare({"output": (T, B, D * H), "h_n": state, "c_n": state})
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "lstm", inputs_of_graph, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_weights(weights: Weights, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (D, 4*H, I), R (D, 4*H, H) and B (D, 8*H) of a layer, gates in ONNX's order i, o, f, g."""

    def reorder(array: np.ndarray | None) -> np.ndarray:
        assert array is not None, "the model has biases"
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])

    records = weights.layers[layer * weights.num_directions : (layer + 1) * weights.num_directions]
    W = np.stack([reorder(record.weight_ih) for record in records])
    R = np.stack([reorder(record.weight_hh) for record in records])
    B = np.stack([np.concatenate([reorder(record.bias_ih), reorder(record.bias_hh)]) for record in records])
    return W, R, B
