"""Keras 2 and 3: files, whole models, and live layers."""
