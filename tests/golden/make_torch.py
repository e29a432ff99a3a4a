"""Makes the golden files of PyTorch in this folder, and the values PyTorch gives for them: ``python tests/golden/make_torch.py``.

Made with torch 2.13.0 and safetensors 0.8.0 on CPU. The tests read them without torch.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

HERE = Path(__file__).parent
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
expected: dict[str, np.ndarray] = {}


class Model(nn.Module):
    """An embedding, an LSTM at ``encoder.rnn``, a head: names inside and beside the LSTM."""

    def __init__(self, *args: int, **keywords: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.encoder = nn.ModuleDict({"rnn": nn.LSTM(*args, **keywords), "norm": nn.LayerNorm(3)})
        self.head = nn.Linear(3, 2)


class ScaledLSTM(nn.LSTM):
    """As in icefall: every parameter is multiplied by the exponential of a learned number."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        for index, name in enumerate(self._flat_weights_names):
            setattr(self, name + "_scale", nn.Parameter(torch.tensor(0.3 * index - 0.5)))


def expect(file: str, name: str, module: nn.Module) -> None:
    """Record the effective parameters of an LSTM or LSTMCell, as float32 or float64, under the names of ``nn.LSTM``."""
    for parameter in getattr(module, "_flat_weights_names", None) or [kind for kind in PARAMETERS if hasattr(module, kind)]:
        value = getattr(module, parameter).detach()
        scale = getattr(module, parameter + "_scale", None)
        value = value if scale is None else value * scale.detach().exp()
        value = value if value.dtype == torch.float64 else value.float()
        expected[f"{file}|{name}|{parameter if '_l' in parameter else parameter + '_l0'}"] = value.numpy()


def save(file: str, value: object, **keywords: object) -> None:
    torch.save(value, HERE / file, **keywords)


def main() -> None:
    torch.manual_seed(20260101)
    warnings.simplefilter("ignore")

    lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
    save("bidirectional_projection.pt", lstm.state_dict())
    save_file(lstm.state_dict(), HERE / "bidirectional_projection.safetensors")
    expect("bidirectional_projection.pt", "", lstm)
    expect("bidirectional_projection.safetensors", "", lstm)

    cell = nn.LSTMCell(3, 5)
    save("cell.pt", nn.ModuleDict({"cell": cell, "out": nn.Linear(5, 1)}).state_dict())
    expect("cell.pt", "cell", cell)

    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        file = str(dtype).removeprefix("torch.")
        lstm = nn.LSTM(3, 5, bias=False).to(dtype)
        save(file + ".pt", lstm.state_dict())
        save_file(lstm.state_dict(), HERE / (file + ".safetensors"))
        expect(file + ".pt", "", lstm)
        expect(file + ".safetensors", "", lstm)

    for file, function in (("weight_norm_old.pt", weight_norm), ("weight_norm_new.pt", parametrizations.weight_norm)):
        model = Model(3, 5)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            function(model.encoder["rnn"], name)
        for name, parameter in model.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.data *= torch.linspace(0.5, 2, len(parameter))[:, None]
        model.encoder["rnn"](torch.zeros(1, 1, 3))  # the old form computes the weight when it is called
        save(file, model.state_dict())
        expect(file, "encoder.rnn", model.encoder["rnn"])

    model = Model(3, 5)
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "best_loss": np.float64(0.5),
        "model": {"state_dict": model.state_dict(), "args": {"sizes": (3, 5), "tags": {"a"}}},
        "optimizer": optimizer.state_dict(),
        "history": [(0, 1.5), (1, 1.25)],
        "ema": [{"shadow": torch.zeros(2)}],
    }
    save("nested.pt", checkpoint)
    save("legacy.pt", checkpoint, _use_new_zipfile_serialization=False)
    save("protocol5.pt", checkpoint, pickle_protocol=5)
    for file in ("nested.pt", "legacy.pt", "protocol5.pt"):
        expect(file, "encoder.rnn", model.encoder["rnn"])

    # One storage for all, with offsets, strides that are not the shape's, one tensor twice, one tensor expanded
    lstm = nn.LSTM(4, 3, num_layers=2)
    flat = torch.randn(1000)
    views = {
        "weight_ih_l0": flat[7:55].view(4, 12).t(),
        "weight_hh_l0": flat[100:172].view(12, 6)[:, ::2],
        "bias_ih_l0": flat[200:212],
        "bias_hh_l0": flat[200:212],
        "weight_ih_l1": flat[300:336].view(12, 3),
        "weight_hh_l1": flat[300:336].view(12, 3),
        "bias_ih_l1": flat[5:6].expand(12),
        "bias_hh_l1": flat[988:1000],
    }
    save("views.pt", views)
    lstm.load_state_dict(views)
    expect("views.pt", "", lstm)

    model = Model(3, 5, bidirectional=True)
    save("parallel.pt", nn.DataParallel(model).state_dict())
    expect("parallel.pt", "module.encoder.rnn", model.encoder["rnn"])

    several = nn.ModuleDict(
        {"a": nn.LSTM(3, 5), "b": nn.ModuleList([nn.LSTMCell(3, 4), nn.LSTMCell(4, 3)]), "gru": nn.GRU(3, 5), "rnn": nn.RNN(3, 5)}
    )
    save("several.pt", several.state_dict())
    for name, module in (("a", several["a"]), ("b.0", several["b"][0]), ("b.1", several["b"][1])):
        expect("several.pt", name, module)

    teacher, student = Model(3, 5), Model(3, 5)
    save("twins.pt", {"teacher": teacher.state_dict(), "student": student.state_dict()})
    expect("twins.pt", "teacher.encoder.rnn", teacher.encoder["rnn"])
    expect("twins.pt", "student.encoder.rnn", student.encoder["rnn"])

    lstm = ScaledLSTM(3, 5)
    save("scaled.pt", {f"encoder.lstm.{name}": value for name, value in lstm.state_dict().items()})
    expect("scaled.pt", "encoder.lstm", lstm)

    # Refused: each for a reason of its own
    save("refused_module.pt", nn.LSTM(3, 5))
    torch.jit.script(nn.LSTMCell(3, 5)).save(HERE / "refused_script.pt")
    save("refused_quantized.pt", torch.ao.quantization.quantize_dynamic(Model(3, 5), {nn.LSTM}).state_dict())
    model = Model(3, 5)
    prune.random_unstructured(model.encoder["rnn"], "weight_hh_l0", amount=0.3)
    save("pruned.pt", model.state_dict())
    model = Model(3, 5)
    parametrizations.orthogonal(model.encoder["rnn"], "weight_hh_l0")
    save("refused_orthogonal.pt", model.state_dict())
    save("refused_gru.pt", nn.ModuleDict({"rnn": nn.GRU(3, 5)}).state_dict())
    save("refused_rnn.pt", nn.ModuleDict({"rnn": nn.RNN(3, 5)}).state_dict())
    save("refused_negated.pt", {name: torch._neg_view(value) for name, value in nn.LSTM(3, 5).state_dict().items()})

    np.savez_compressed(HERE / "torch_expected.npz", **expected)


if __name__ == "__main__":
    main()
