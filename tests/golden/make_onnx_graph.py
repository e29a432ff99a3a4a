"""Makes the whole ONNX graphs of this folder with PyTorch's two exporters: ``python tests/golden/make_onnx_graph.py``.

Made with torch 2.13.0, onnx 1.23.2 and onnxscript 0.7.2 on CPU. The tests read them without torch.
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).parent


class Tagger(nn.Module):
    """Tokens to a class for each, and one for the sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(10)
        self.tags, self.topic = nn.Linear(10, 4), nn.Linear(10, 3)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (h, _) = self.lstm(self.embedding(tokens))
        last = torch.cat([h[-2], h[-1]], 1)
        return torch.softmax(self.tags(torch.relu(self.norm(y))), -1), torch.tanh(self.topic(last))


def plain(path: Path) -> None:
    """Without the exporter's notes of where in which file each node came from."""
    message = onnx.load(path)
    graph = message.graph
    for item in (message, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    onnx.save(message, path)


def main() -> None:
    torch.manual_seed(20260103)
    warnings.simplefilter("ignore")
    model = Tagger().eval()
    tokens = torch.randint(0, 11, (2, 4))
    names = {"input_names": ["tokens"], "output_names": ["tags", "topic"]}
    axes = {"tokens": {0: "B", 1: "T"}}
    torch.onnx.export(model, (tokens,), HERE / "graph_torchscript.onnx", dynamo=False, dynamic_axes=axes, **names)
    shapes = ({0: torch.export.Dim("B"), 1: torch.export.Dim("T")},)
    torch.onnx.export(
        model, (tokens,), HERE / "graph_dynamo.onnx", dynamo=True, dynamic_shapes=shapes, external_data=False, **names
    )
    plain(HERE / "graph_dynamo.onnx")
    tokens = torch.randint(0, 11, (3, 7))
    with torch.no_grad():
        tags, topic = model(tokens)
    np.savez(HERE / "onnx_graph_expected.npz", tokens=tokens.numpy(), tags=tags.numpy(), topic=topic.numpy())


if __name__ == "__main__":
    main()
