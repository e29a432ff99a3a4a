"""Makes the ONNX files of this folder with PyTorch's exporter, and their parameters: ``python tests/golden/make_onnx.py``.

Made with torch 2.13.0 and onnx 1.23.2 on CPU. The tests read them without torch.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
expected: dict[str, np.ndarray] = {}


class Model(nn.Module):
    """Two modules with an LSTM each, the second in front of a head; a GRU beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(3, 5, num_layers=2, bidirectional=True)})
        self.decoder = nn.ModuleDict({"rnn": nn.LSTM(10, 5)})
        self.gru = nn.GRU(3, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, _ = self.encoder["rnn"](x)
        y, (h, _) = self.decoder["rnn"](y)
        return y + h, self.gru(x)[0]


class Cell(nn.Module):
    """A cell, which the exporter takes apart: only the names of its parameters are left."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 5)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cell(x, (h, c))


class Learned(nn.Module):
    """An LSTM that begins from a state of its own, for one row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5)
        self.h_0, self.c_0 = (nn.Parameter(torch.randn(1, 1, 5)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x, (self.h_0, self.c_0))[0]


def export(file: str, module: nn.Module, inputs: tuple[torch.Tensor, ...], opset: int = 17, **options: object) -> None:
    axes = {"x": {0: "T", 1: "B"}}
    names = ["x", "h", "c"][: len(inputs)]
    torch.onnx.export(
        module, inputs, HERE / file, dynamo=False, opset_version=opset, input_names=names, dynamic_axes=axes, **options
    )


def expect(file: str, name: str, module: nn.Module) -> None:
    for parameter, value in module.named_parameters():
        key = parameter if "_l" in parameter else parameter + "_l0"
        value = value.detach()
        expected[f"{file}|{name}|{key}"] = (value if value.dtype == torch.float64 else value.float()).numpy()


def main() -> None:
    torch.manual_seed(20260102)
    warnings.simplefilter("ignore")
    x = torch.randn(4, 2, 3)

    model = Model().eval()
    export("model.onnx", model, (x,))
    expect("model.onnx", "/rnn/LSTM", model.encoder["rnn"])
    expect("model.onnx", "/rnn_1/LSTM", model.decoder["rnn"])

    # Gates put in ONNX's order by nodes: with attributes, and with inputs, of the operators
    lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=True).eval()
    for file, opset in (("unfolded_9.onnx", 9), ("unfolded_17.onnx", 17)):
        export(file, lstm, (x,), opset, do_constant_folding=False)
        expect(file, "/LSTM", lstm)

    cell = Cell().eval()
    export("cell.onnx", cell, (x[0], torch.randn(2, 5), torch.randn(2, 5)))
    expect("cell.onnx", "cell", cell.cell)

    for dtype in (torch.float16, torch.float64):
        file = str(dtype).removeprefix("torch.") + ".onnx"
        lstm = nn.LSTM(3, 5, num_layers=3, bias=False, batch_first=True).to(dtype).eval()
        export(file, lstm, (x.to(dtype),))
        expect(file, "/LSTM", lstm)

    learned = Learned().eval()
    export("learned.onnx", learned, (x[:, :1],))
    expect("learned.onnx", "/lstm/LSTM", learned.lstm)
    expected["learned.onnx|/lstm/LSTM|h_0_l0"] = learned.h_0.detach().numpy().reshape(5)
    expected["learned.onnx|/lstm/LSTM|c_0_l0"] = learned.c_0.detach().numpy().reshape(5)

    np.savez_compressed(HERE / "onnx_expected.npz", **expected)


if __name__ == "__main__":
    main()
