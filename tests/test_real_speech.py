"""A real network on real speech: the LSTM of Silero VAD over a minute of 32 ms frames.

Its input is what the network's own first layers make of the sound, computed here with NumPy. Files: ``../shared/data`` beside the
repository; without them the tests are skipped.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from helpers import Case, assert_close, assert_same_bytes, flat, import_torch
from safetensors.numpy import load_file
from shapes import Shape

import fastlstm
from fastlstm.weights import LayerWeights, Weights

DATA = Path(__file__).parents[2] / "shared" / "data"
MODEL, SPEECH = DATA / "silero_vad_16k.safetensors", DATA / "test.wav"
FRAME, CONTEXT, HOP = 512, 64, 128  # samples at 16 kHz; CONTEXT samples of the frame before precede each frame

# Most outputs are within 3e-7 of exact arithmetic. Weights reach 2.6 and features 8, so that some sums have large terms and small
# results: there, PyTorch's own cell is wrong by up to 1.9e-6.
USUAL, WORST = 3e-7, 3e-6

pytestmark = pytest.mark.skipif(not (MODEL.exists() and SPEECH.exists()), reason="the model and the recording are not here")


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """``relu(conv1d(x))`` with a kernel of 3 and a padding of 1; x: (frames, channels, time)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1))), 3, axis=2)[:, :, ::stride]
    return np.maximum(np.einsum("nctk,ock->not", windows, weight, optimize=True) + bias[:, None], 0)


@pytest.fixture(scope="module")
def parameters() -> dict[str, np.ndarray]:
    return dict(load_file(MODEL))


@pytest.fixture(scope="module")
def case(parameters: dict[str, np.ndarray]) -> Case:
    """The whole recording as one sequence of one row, from a state that is not zero."""
    with wave.open(str(SPEECH)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    sound = sound[: len(sound) // FRAME * FRAME]
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (CONTEXT, 0)), CONTEXT + FRAME)[::FRAME]
    frames = np.pad(frames, ((0, 0), (0, 64)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(frames, 256, axis=1)[:, ::HOP]
    real, imaginary = np.split(windows @ parameters["stft_conv.weight"][:, 0].T, 2, axis=2)
    features = np.hypot(real, imaginary).swapaxes(1, 2)
    for n, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        features = convolve(features, parameters[f"conv{n}.weight"], parameters[f"conv{n}.bias"], stride)
    x = features.swapaxes(1, 2).astype(np.float32)
    assert x.shape[1:] == (1, 128)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = Weights((LayerWeights(*(parameters[f"lstm_cell.{name}"] for name in names)),))
    state = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1, 1, 128)).astype(np.float32)
    return Case(Shape(len(x), 1, 128, 128), weights, x, (state[0], state[1]))


def speech_probability(output: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    logits = np.maximum(output[:, 0], 0) @ parameters["final_conv.weight"][0, :, 0] + parameters["final_conv.bias"]
    return 1 / (1 + np.exp(-logits))


def torch_cell(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell as Silero VAD itself runs it, frame by frame."""
    torch = import_torch()
    cell = torch.nn.LSTMCell(128, 128)
    cell.load_state_dict({name.removesuffix("_l0"): torch.from_numpy(a) for name, a in case.weights.named_tensors()})
    h, c = (torch.from_numpy(s[0]) for s in case.state)
    outputs = []
    with torch.no_grad():
        for x_t in torch.from_numpy(case.x):
            h, c = cell(x_t, (h, c))
            outputs.append(h)
    return torch.stack(outputs).numpy(), h[None].numpy(), c[None].numpy()


def test_reference(case: Case) -> None:
    result, exact = case.run(), case.expected()
    largest = np.abs(exact[2]).max()  # the cell state goes up to 36
    assert_close((*result[:2], result[2] / largest), (*exact[:2], exact[2] / largest), WORST)
    assert np.quantile(np.abs(result[0] - exact[0]), 0.95) < USUAL


def test_torch(case: Case) -> None:
    """Near PyTorch, and no farther from exact arithmetic than PyTorch is."""
    output, theirs, exact = (result[0] for result in (case.run(), torch_cell(case), case.expected()))
    assert np.abs(output - theirs).max() < 2 * WORST
    assert np.quantile(np.abs(output - theirs), 0.95) < USUAL
    ours, others = np.abs(output - exact), np.abs(theirs - exact)
    assert ours.max() < 1.2 * others.max()
    assert ours.mean() < 1.2 * others.mean()


def test_frame_by_frame(case: Case) -> None:
    """A stream gives the same bytes as one call, and so do pieces of a second in one batch."""
    lstm = case.network()
    output, state = lstm(case.x)
    stream = lstm.stream()
    steps = np.stack([stream.step(x_t) for x_t in case.x])
    assert_same_bytes((steps, *stream.state), (output, *state))
    seconds = np.ascontiguousarray(case.x[: len(case.x) // 31 * 31].reshape(-1, 31, 128).swapaxes(0, 1))
    batch = lstm(seconds)[0]
    for n in range(seconds.shape[1]):
        assert batch[:, n].tobytes() == lstm(seconds[:, n])[0].tobytes()


def test_it_hears_speech(case: Case, parameters: dict[str, np.ndarray]) -> None:
    """The features are the network's own: it is sure of most frames, some of them speech and some not."""
    probability = speech_probability(case.network()(case.x)[0], parameters)
    assert 0.1 < (probability > 0.5).mean() < 0.95
    assert ((probability < 0.2) | (probability > 0.8)).mean() > 0.8


def test_loaded_by_name(case: Case) -> None:
    lstm = fastlstm.load(MODEL, name="lstm_cell")
    assert_same_bytes(flat(lstm(case.x, case.state)), case.run())
