"""The one exception type of our own."""

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A file or object holds no LSTM or model that can be read exactly.

    The message names the tensor, what was expected and what was found.
    """
