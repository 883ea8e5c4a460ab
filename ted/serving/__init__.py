"""Answers to raw text from a bundle, with onnxruntime and tokenizers only."""
