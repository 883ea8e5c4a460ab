"""Take a tiny random model of each supported architecture through every stage, from fine-tuning to a proven export.

    python -m benchmarks.architectures [NAME...] [--tasks KIND...]

Prints a JSON line per architecture and kind of head that it has: `name`, `task`, `passed`, `max_abs_difference` between
the exported and the trained student over all shapes, `seconds`, and `problem` where it did not pass.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.tiny import BAD, FILLING, GOOD, distillation_inputs, new_data, new_settings, write_model
from ted import stages
from ted.config import TaskKind
from ted.errors import TedError
from ted.export.bundle import export_bundle
from ted.models.loading import HEADS
from ted.tasks import get_task
from ted.tasks.registry import TASKS

VOCABULARY = 400
"""Rows of every embedding; more than any tokenizer below has tokens."""


@dataclass(frozen=True)
class Special:
    """The special tokens of a family in the order of their ids, what they are for, and how they frame a text."""

    tokens: tuple[str, ...]
    roles: Mapping[str, str]
    single: str = "$A"
    pair: str = "$A $B:1"


BERT = Special(
    ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    "[CLS] $A [SEP]",
    "[CLS] $A [SEP] $B:1 [SEP]:1",
)
ROBERTA = Special(
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    },
    "<s> $A </s>",
    "<s> $A </s> </s> $B </s>",
)
GPT2 = Special(("<|endoftext|>",), dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))
LLAMA = Special(
    ("<|begin_of_text|>", "<|end_of_text|>"),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "<|begin_of_text|> $A",
    "<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
)
QWEN = Special(("<|endoftext|>", "<|im_end|>"), {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
GEMMA = Special(
    ("<pad>", "<eos>", "<bos>", "<unk>"),
    {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    "<bos> $A",
    "<bos> $A <bos>:1 $B:1",
)
OPT = Special(
    ("<s>", "<pad>", "</s>", "<unk>"),
    {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "</s> $A",
    "</s> $A </s>:1 $B:1",
)
WORDS = (*GOOD, *BAD, *FILLING)
DEBERTA = Special(("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), BERT.roles, BERT.single, BERT.pair)
MODERNBERT = Special(("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), BERT.roles, BERT.single, "[CLS] $A [SEP] $B [SEP]")


def _wordpiece(special: Special) -> Tokenizer:
    """Return a tokenizer of whole words."""
    vocabulary = {token: index for index, token in enumerate((*special.tokens, *WORDS))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=special.roles["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _byte_level(special: Special) -> Tokenizer:
    """Return a tokenizer of bytes and of pairs of them, as GPT-2 merges them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "abcdefghilmopstvw"]
    tokens = (*special.tokens, *alphabet, *("".join(pair) for pair in merges))
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _unigram(special: Special) -> Tokenizer:
    """Return a tokenizer of the pieces with the best scores, as SentencePiece cuts them."""
    pieces = [(token, 0.0) for token in special.tokens]
    pieces += [(f"▁{word}", -2.0) for word in WORDS] + [(letter, -8.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.Unigram(pieces, special.tokens.index(special.roles["unk_token"])))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


@dataclass(frozen=True)
class Architecture:
    """How a tiny model of an architecture is made: its configuration's class and values, and its tokenizer."""

    config: str
    special: Special
    backend: Callable[[Special], Tokenizer]
    values: Mapping[str, Any] = field(default_factory=dict)
    token_types: bool = False

    def new_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer."""
        backend, special = self.backend(self.special), self.special
        names = [(token, index) for index, token in enumerate(special.tokens)]
        framed = processors.TemplateProcessing(single=special.single, pair=special.pair, special_tokens=names)
        backend.post_processor = framed
        inputs = ["input_ids", *(["token_type_ids"] if self.token_types else []), "attention_mask"]
        made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
            tokenizer_object=backend, model_input_names=inputs, **special.roles
        )  # type: ignore[no-untyped-call]
        return made

    def new_config(self, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> PreTrainedConfig:
        """Return the configuration of a model for that tokenizer, with values changed."""
        ids = {
            f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None)
            for role in ("pad", "bos", "eos", "cls", "sep")
        }
        made: PreTrainedConfig = getattr(transformers, self.config)(**{**SHAPE, **ids, **self.values, **changes})
        return made

    def write_backbone(self, folder: Path) -> Path:
        """Write a random model without a head for any task, and its tokenizer."""
        tokenizer = self.new_tokenizer()
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(self.new_config(tokenizer))  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            # Norms and biases start equal in all layers; arrays are told apart by their content.
            parameter.data += 0.1 * torch.randn_like(parameter)
        return write_model(folder, model, tokenizer)


SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    # So wide that the fresh head's answers differ from text to text by far more than the tolerance of parity.
    "initializer_range": 0.3,
    "init_std": 0.3,
}
ROTARY: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 16}
RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
# As layers of two kinds follow each other, a student of every second layer has to have both.
KINDS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture("BertConfig", BERT, _wordpiece, token_types=True),
    "roberta": Architecture("RobertaConfig", ROBERTA, _byte_level, {"max_position_embeddings": 66}),
    "distilbert": Architecture("DistilBertConfig", BERT, _wordpiece, {"hidden_dim": 48}),
    "electra": Architecture("ElectraConfig", BERT, _wordpiece, {"embedding_size": 16}, token_types=True),
    "mpnet": Architecture("MPNetConfig", ROBERTA, _wordpiece, {"max_position_embeddings": 66}),
    "albert": Architecture("AlbertConfig", BERT, _unigram, {"embedding_size": 16}, token_types=True),
    "deberta-v2": Architecture(
        "DebertaV2Config",
        DEBERTA,
        _unigram,
        {**RELATIVE, "conv_kernel_size": 3, "type_vocab_size": 0},
        token_types=True,
    ),
    "deberta-v3": Architecture(
        "DebertaV2Config", DEBERTA, _unigram, {**RELATIVE, "type_vocab_size": 0}, token_types=True
    ),
    "modernbert": Architecture("ModernBertConfig", MODERNBERT, _byte_level, {**KINDS, "local_attention": 8}),
    "xlm-roberta": Architecture("XLMRobertaConfig", ROBERTA, _unigram, {"max_position_embeddings": 66}),
    "gpt2": Architecture("GPT2Config", GPT2, _byte_level),
    "llama": Architecture("LlamaConfig", LLAMA, _byte_level, ROTARY),
    "qwen2": Architecture("Qwen2Config", QWEN, _byte_level, {"num_key_value_heads": 1}),
    "qwen3": Architecture("Qwen3Config", QWEN, _byte_level, ROTARY),
    "gemma2": Architecture("Gemma2Config", GEMMA, _unigram, {**ROTARY, **KINDS, "sliding_window": 8}),
    "gemma3": Architecture("Gemma3TextConfig", GEMMA, _unigram, {**ROTARY, **KINDS, "sliding_window": 8}),
    "opt": Architecture("OPTConfig", OPT, _byte_level, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}
HEADS_TRIED: tuple[TaskKind, ...] = (
    "classification",
    "token_classification",
    "question_answering",
    "masked_lm",
    "causal_lm",
)
"""A kind of task for each kind of head."""


def tasks_of(architecture: Architecture) -> tuple[TaskKind, ...]:
    """Return the kinds of task, one per kind of head, that the architecture has a model for.

    An encoder that transformers can also run as a decoder is not trained as one.
    """
    kind = architecture.new_config(architecture.new_tokenizer()).model_type
    found = [task for task in HEADS_TRIED if kind in HEADS[TASKS[task].auto_class]]
    return tuple(task for task in found if task != "causal_lm" or "masked_lm" not in found)


def take_through(architecture: Architecture, folder: Path, kind: TaskKind = "classification") -> dict[str, Any]:
    """Run every stage on a tiny model of the architecture and return the manifest of the exported bundle."""
    new_data(kind).save_to_disk(str(folder / "data"))
    architecture.write_backbone(folder / "backbone")
    windows = {"stride": 4} if kind in {"token_classification", "question_answering"} else {}
    settings = new_settings(folder, task={"kind": kind}, export={"int8": False}, data={"max_length": 40, **windows})
    task = get_task(settings.task)
    evaluation = {
        "primary_metric": task.primary_metric,
        "higher_is_better": task.higher_is_better,
        "rows": 16,
        "models": {"student": {"metrics": {}, "slices": {}, "agreement": None, "parameters": 0}},
    }
    data, teacher, start = folder / "data", folder / "teacher", folder / "student_start"
    stages.finetune_teacher(settings, data, teacher)
    stages.prepare_student(settings, data, start)
    stages.learn_filters(settings, data, teacher, "teacher", folder / "teacher_filters")
    stages.learn_filters(settings, data, start, "student", folder / "student_filters")
    stages.distill_student(settings, distillation_inputs(folder), folder / "student")
    return export_bundle(settings, folder / "student", data, evaluation, 1, folder / "bundles")


def report(name: str, task: TaskKind, folder: Path) -> dict[str, Any]:
    """Return what became of an architecture on a kind of task."""
    started = time.monotonic()
    row: dict[str, Any] = {"name": name, "task": task, "passed": True, "max_abs_difference": None}
    try:
        row["max_abs_difference"] = take_through(ARCHITECTURES[name], folder, task)["parity"]["max_abs_difference"]
    except TedError as error:
        row |= {"passed": False, "problem": str(error)}
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per architecture and task; return 1 if one did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(ARCHITECTURES), help="all if none is given")
    parser.add_argument("--tasks", nargs="+", choices=HEADS_TRIED, default=HEADS_TRIED, help="all if none is given")
    parsed = parser.parse_args(arguments)
    names = parsed.names
    if unknown := sorted(set(names) - set(ARCHITECTURES)):
        parser.error(f"no such architectures: {', '.join(unknown)}; known are {', '.join(ARCHITECTURES)}")
    failed = False
    tried = [(name, task) for name in names for task in tasks_of(ARCHITECTURES[name]) if task in parsed.tasks]
    for name, task in tried:
        with tempfile.TemporaryDirectory() as folder:
            row = report(name, task, Path(folder))
        print(json.dumps(row), flush=True)
        failed |= not row["passed"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
