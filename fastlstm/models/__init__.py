"""Whole small models: LSTMs, which run in the engine, and what stands around them, in NumPy."""
