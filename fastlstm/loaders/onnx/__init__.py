"""ONNX: models, the LSTMs in them, and files of our own."""
