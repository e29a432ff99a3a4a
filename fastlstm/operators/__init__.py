"""What runs around the LSTMs of whole models, on NumPy arrays: ONNX' operators (``table``) and what they are made of."""
