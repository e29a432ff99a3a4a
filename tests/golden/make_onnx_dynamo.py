"""Makes the ONNX files of this folder that PyTorch's second exporter writes: ``python tests/golden/make_onnx_dynamo.py``.

Made with torch 2.13.0, onnx 1.23.2 and onnxscript 0.7.2 on CPU. The tests read them without torch. This exporter joins layers by
a Reshape with sizes that it computes at run time, or that are numbers where no axis is dynamic.
"""

import warnings

import numpy as np
import torch
from make_onnx_graph import HERE, plain
from torch import nn
from torch.export import Dim

expected: dict[str, np.ndarray] = {}


class Learned(nn.Module):
    """Begins from a state of its own, which it repeats for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2)
        self.h_0, self.c_0 = (nn.Parameter(torch.randn(2, 1, 5)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[1]
        return self.lstm(x, (self.h_0.expand(-1, rows, -1), self.c_0.expand(-1, rows, -1)))[0]


def export(file: str, name: str, module: nn.Module, lstm: nn.LSTM, shapes: object = None) -> None:
    x = torch.randn(4, 2, 3)
    torch.onnx.export(module.eval(), (x,), HERE / file, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)
    plain(HERE / file)
    for parameter, value in lstm.named_parameters():
        expected[f"{file}|{name}|{parameter}"] = value.detach().numpy()


def main() -> None:
    torch.manual_seed(20260104)
    warnings.simplefilter("ignore")
    free = ({0: Dim("B"), 1: Dim("T")},)
    lstm = nn.LSTM(3, 5, num_layers=3, bidirectional=True, batch_first=True)
    export("dynamo.onnx", "node_LSTM_115", lstm, lstm, free)
    lstm = nn.LSTM(3, 5, num_layers=2, bias=False)
    export("dynamo_fixed.onnx", "node_LSTM_42", lstm, lstm)
    learned = Learned()
    export("dynamo_learned.onnx", "node_LSTM_64", learned, learned.lstm, ({1: Dim("B")},))
    for letter in "hc":
        for layer in range(2):
            state = getattr(learned, f"{letter}_0")[layer, 0]
            expected[f"dynamo_learned.onnx|node_LSTM_64|{letter}_0_l{layer}"] = state.detach().numpy()
    np.savez_compressed(HERE / "onnx_dynamo_expected.npz", **expected)


if __name__ == "__main__":
    main()
