"""The one exception type of our own."""

__all__ = ["FormatError"]


class FormatError(ValueError):
    """A file or object holds no LSTM that can be read exactly; the message names the tensor, the expectation and the finding."""
