"""Name the class of each text, with onnxruntime, tokenizers and numpy alone: how little a bundle needs.

This answers a classification of single texts only, and compares no digest; `ted predict` answers every task and
verifies the files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="runs/latest/bundle/NAME, whose highest version counts, or a version")
parser.add_argument("texts", nargs="+")
arguments = parser.parse_args()
versions = [path.parent for path in arguments.folder.glob("*/bundle.json") if path.parent.name.isdecimal()]
folder = max(versions, key=lambda path: int(path.name), default=arguments.folder)
bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
if bundle["task"]["kind"] != "classification" or bundle["pair"]:
    what = f"{bundle['task']['kind']} of {'pairs of texts' if bundle['pair'] else 'texts'}"
    parser.error(f"{folder} is for {what}, not for a classification of single texts; use ted predict")
encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(arguments.texts)
fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {name: np.array([getattr(encoding, fields[name]) for encoding in encodings]) for name in bundle["inputs"]}
(logits,) = InferenceSession(folder / bundle["model"]).run(["logits"], inputs)
for text, row in zip(arguments.texts, logits, strict=True):
    print(json.dumps({"text": text, "label": bundle["task"]["labels"][row.argmax()]}))
