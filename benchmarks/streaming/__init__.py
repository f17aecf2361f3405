"""Streaming beside the wires that it takes, and beside stock transformers."""
