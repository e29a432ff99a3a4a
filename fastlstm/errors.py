"""The one exception type of our own."""

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A file or object does not contain an LSTM or model that can be loaded exactly.

    The message names the tensor, what was expected and what was found.
    """
