"""The one list of shapes: each a case with its reason, shared by the tests and the benchmarks.

Letters: T steps, B rows, I inputs, H hidden units, L layers, D directions, P projected units (0: none).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One case; ``name`` writes it as ``t50b32i256h512l2d2p64``, without the l, d and p that are 1, 1 and 0."""

    T: int
    B: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    P: int = 0
    reason: str = ""

    @classmethod
    def parse(cls, name: str, reason: str = "") -> Shape:
        match = re.fullmatch(r"t(\d+)b(\d+)i(\d+)h(\d+)(?:l(\d+))?(?:d([12]))?(?:p(\d+))?", name)
        if match is None:
            raise ValueError(f"a shape is named like t50b32i256h512l2d2p64, got {name!r}")
        usual = (0, 0, 0, 0, 1, 1, 0)
        return cls(*(int(n or default) for n, default in zip(match.groups(), usual, strict=True)), reason=reason)

    @property
    def name(self) -> str:
        optional = (("l", self.L, 1), ("d", self.D, 1), ("p", self.P, 0))
        return f"t{self.T}b{self.B}i{self.I}h{self.H}" + "".join(f"{key}{n}" for key, n, usual in optional if n != usual)

    def __str__(self) -> str:
        return self.name

    @property
    def recurrent(self) -> int:
        """Size of h: P with a projection, else H."""
        return self.P or self.H

    @property
    def parameters(self) -> int:
        """Weights of all layers and directions, biases left out."""
        inputs = [self.I] + [self.D * self.recurrent] * (self.L - 1)
        return self.D * sum(4 * self.H * (n + self.recurrent) + self.P * self.H for n in inputs)

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass without padding: a multiply-add counts two."""
        return 2 * self.T * self.B * self.parameters

    def at_most(self, T: int, B: int) -> Shape:
        """The same network on less data, where only its sizes matter."""
        return replace(self, T=min(self.T, T), B=min(self.B, B))


def _shapes(*cases: tuple[str, str]) -> tuple[Shape, ...]:
    return tuple(Shape.parse(name, reason) for name, reason in cases)


# What people run on CPUs, with lengths and batches as they run them there.
REAL_USES = _shapes(
    ("t1b1i128h128", "Silero VAD, one 32 ms frame of a stream"),
    ("t512b1i128h128", "Silero VAD, 16 s of audio in one call"),
    ("t293b8i60h128l2d2", "pyannote segmentation, 5 s windows"),
    ("t200b1i640h256d2", "Kokoro text to speech, one sentence's phonemes"),
    ("t750b1i512h512l2", "EnCodec, 10 s of audio"),
    ("t255b4i512h256l3d2", "Open-Unmix, 6 s excerpts"),
    ("t200b4i384h384l2d2", "Demucs, overlapping chunks"),
    ("t1b1i257h128l2", "DTLN noise suppression, one 8 ms hop"),
    ("t16b1i2048h2048", "DeepSpeech 0.9, streaming: weights larger than L2"),
    ("t1b1i320h320l2", "RNN-T prediction network, one label"),
    ("t1b16i640h640l2", "NeMo TDT prediction network, greedy decoding of a batch"),
    ("t16b1i512h1024l2p512", "icefall transducer, a chunk of a stream, two of its twelve projected layers"),
    ("t400b16i384h384", "Bonito basecaller, a piece of a read"),
    ("t512b1i1h16", "neural amp modelling, one audio block: pure latency"),
    ("t1000b40i1h32", "guitar amp training, truncated backpropagation over 1000 samples"),
    ("t63b1i24h32d2", "production speech, oneDNN issue 837"),
    ("t200b1i64h96l2", "Tesseract, one text line"),
    ("t32b128i512h128l2d2", "docTR, word crops"),
    ("t100b16i256h256d2", "EasyOCR second generation, text boxes"),
    ("t32b16i100h1024", "flair character language model, fast variant"),
    ("t20b64i1024h200l3d2", "Stanza parser, sentences of one batch"),
    ("t12b512i64h64d2", "Stanza and flair character models: many short words"),
    ("t20b16i512h4096p512", "ELMo: large projected cell"),
    ("t70b64i400h1152", "AWD-LSTM, one middle layer"),
    ("t1b3200i40h40l2", "DeepAR decoding: 32 series x 100 samples, one step"),
    ("t365b64i16h128", "NeuralHydrology, a year of days"),
    ("t128b8i64h256", "recurrent PPO, a training batch with resets"),
    ("t16b1024i128h128", "PufferLib: very many rows, few steps"),
)

# The sizes of Baidu's DeepBench for inference on servers, the papers' common ground.
DEEPBENCH = tuple(
    Shape(T, B, H, H, reason="DeepBench inference")
    for H, T in ((256, 50), (512, 50), (1024, 25), (1536, 50), (2048, 25))
    for B in (1, 2, 4)
)

# What the race of training was first measured with, beside the shapes in use.
TRAINING = _shapes(
    ("t100b32i128h128", "training, many short rows"),
    ("t50b64i256h256", "training, a usual batch"),
    ("t50b64i512h512", "training, larger than L2"),
    ("t100b1i256h256", "training, one row"),
)

# Sizes around every tail of the kernels: vectors have 4, 8 or 16 lanes of float32 and 2, 4 or 8 of float64, tiles at most 6 rows.
EDGE = _shapes(
    ("t1b1i1h1", "the smallest network"),
    ("t5b3i1h1l2d2", "one hidden unit, layers and directions"),
    ("t1b1i5h3", "T = 1: a single step"),
    ("t1b9i7h12l3d2", "T = 1 with layers and directions"),
    ("t0b3i5h4", "T = 0"),
    ("t0b2i5h4l2d2p3", "T = 0 with everything"),
    ("t4b0i5h3", "B = 0"),
    ("t4b0i5h6l2d2p3", "B = 0 with everything"),
    ("t0b0i5h3", "T = B = 0"),
    ("t2b1i3h2", "B = 1; H a vector of SSE2 or NEON doubles"),
    ("t6b2i4h3", "B = 2; H one less than a vector of 4"),
    ("t6b3i3h4", "B = 3: a tile of AVX2; H a vector of 4"),
    ("t6b4i6h5", "B = 4; H one more than a vector of 4"),
    ("t5b5i2h7", "B = 5: one less than a tile of AVX-512; H one less than a vector of 8"),
    ("t5b6i7h8", "B = 6: a tile of AVX-512; H a vector of 8"),
    ("t5b7i8h9", "B = 7: a tile and one row; H one more than a vector of 8"),
    ("t4b8i14h15", "B = 8; H one less than a vector of 16"),
    ("t4b9i15h16", "B = 9; H a vector of 16"),
    ("t4b10i9h17", "B = 10; H one more than a vector of 16"),
    ("t3b11i30h31", "B = 11: one less than two tiles; H one less than two vectors of 16"),
    ("t3b12i31h32", "B = 12: two tiles; H two vectors of 16"),
    ("t3b13i17h33", "B = 13: two tiles and one row; H one more than two vectors of 16"),
    ("t7b2i33h47", "H one less than three vectors of 16, an odd number of blocks"),
    ("t7b1i40h49", "H three vectors of 16 and one"),
    ("t6b4i1h24", "I = 1"),
    ("t9b1i1h20l2", "I = 1, one row, layers: amp modelling"),
    ("t8b5i16h16", "the square case I = H, a multiple of every vector"),
    ("t8b5i19h19l2d2", "the square case I = H, no multiple of any vector"),
    ("t6b4i10h6p1", "P = 1"),
    ("t6b7i10h21p5", "P odd"),
    ("t5b4i9h34l2d2p33", "P one more than two vectors, directions and layers"),
    ("t6b3i5h13l3d2", "three layers in two directions"),
    ("t4b3i300h9", "I longer than a panel of the products, H short"),
    ("t3b2i11h131", "H longer than a panel, odd"),
    ("t3b20i70h130l2", "more rows than any tile; H two more than 128"),
    ("t2b67i5h10", "many rows, a prime number of them"),
    ("t65b3i6h10", "more steps than a chunk of 64"),
    ("t300b2i3h5", "long T"),
    ("t90b7i5h9l2p4", "a stack of layers that hands on some hundred tokens at a time"),
    ("t601b1i4h6l3", "the same with one row"),
    ("t1030b1i4h18d2", "long T, one row, both directions"),
)


def by_name(name: str) -> Shape:
    """A shape of the lists above with its reason, or any other one."""
    return next((shape for shape in (*REAL_USES, *DEEPBENCH, *TRAINING, *EDGE) if shape.name == name), Shape.parse(name))
