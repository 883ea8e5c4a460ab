"""What is known of architectures beyond what every Hugging Face model says of itself: one line per exception."""

from typing import Final

SUPPORTED: Final = (
    "albert",
    "bert",
    "deberta-v2",
    "distilbert",
    "electra",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "llama",
    "modernbert",
    "mpnet",
    "opt",
    "qwen2",
    "qwen3",
    "roberta",
    "xlm-roberta",
)
"""Kinds of models, by `model_type`, that are taken through every stage by a test. Others are not refused."""

SHARED_LAYERS: Final = {"albert": "num_hidden_groups"}
"""Kinds that run the same weights as every layer, and the value that says how many sets of weights they have. Such a
student has the teacher's weights and runs them as often as it has layers: which layers are chosen changes nothing."""

LAST_WIDTH: Final = {"opt": "word_embed_proj_dim"}
"""Kinds whose last states may have another width than the others, and the value that gives it."""

ENCODERS: Final = frozenset({"bert-generation"})
"""Kinds that are encoders unless their configuration says otherwise, beside all that have a masked language model."""
