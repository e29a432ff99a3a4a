"""A character model in PyTorch, trained twice from one seed: with ``torch.nn.LSTM``, and after ``fastlstm.torch.replace(model)``.

Both reach the same losses, and the times of each epoch stand side by side. Needs torch and tqdm; half a minute on two cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from tqdm import tqdm

import fastlstm.torch

STEPS, BATCH = 64, 16  # characters of a window, and streams of text side by side


class CharacterModel(nn.Module):
    """From characters up to t, shape (T, B), scores of the character t + 1, shape (T, B, V)."""

    def __init__(self, characters: int, hidden_size: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, 32)
        self.lstm = nn.LSTM(32, hidden_size, num_layers)
        self.head = nn.Linear(hidden_size, characters)

    def forward(
        self, text: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        output, state = self.lstm(self.embedding(text), state)
        return self.head(output), state


def read(path: Path | None, length: int) -> tuple[torch.Tensor, int]:
    """The beginning of a text as numbers, shape (time, BATCH), and how many different characters it has.

    Without a path the text is that of Python's ``help()``, which every Python carries.
    """
    text = ("".join(topics.values()) if path is None else path.read_text(encoding="utf-8"))[:length]
    number = {character: n for n, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([number[character] for character in text])
    return numbers[: len(numbers) // BATCH * BATCH].view(BATCH, -1).T.contiguous(), len(number)


def train(model: CharacterModel, text: torch.Tensor, epochs: int) -> Iterator[tuple[float, float]]:
    """After each epoch its mean loss and its seconds."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    windows = range(0, len(text) - STEPS, STEPS)
    for _ in range(epochs):
        begin, total, state = time.perf_counter(), 0.0, None
        for start in windows:
            scores, state = model(text[start : start + STEPS], state)
            state = (state[0].detach(), state[1].detach())  # truncated: the state goes on, its gradient does not
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), text[start + 1 : start + STEPS + 1].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        yield total / len(windows), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", type=Path, help="file to learn (default: what Python's help() says of itself)")
    parser.add_argument("--length", type=int, default=60_000, help="characters of it (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the text (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for both (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text, characters = read(args.text, args.length)

    torch.manual_seed(0)
    theirs = CharacterModel(characters)
    torch.manual_seed(0)
    ours = CharacterModel(characters)
    print(f"{text.numel()} characters; replaced: {', '.join(fastlstm.torch.replace(ours).swapped)}")
    print("epoch    loss: torch.nn.LSTM   fastlstm    seconds: torch.nn.LSTM   fastlstm")
    both = zip(train(theirs, text, args.epochs), train(ours, text, args.epochs), strict=True)
    for epoch, (a, b) in enumerate(tqdm(both, total=args.epochs, unit="epoch"), 1):
        tqdm.write(f"{epoch:5}  {a[0]:20.5f}  {b[0]:9.5f}  {a[1]:23.2f}  {b[1]:9.2f}")


if __name__ == "__main__":
    main()
