"""Answer texts from a bundle's version folder: python predict_with_onnxruntime.py BUNDLE/VERSION TEXT..."""

import json
import sys

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

folder, texts = sys.argv[1], sys.argv[2:]
with open(f"{folder}/bundle.json", encoding="utf-8") as file:
    bundle = json.load(file)
encodings = Tokenizer.from_file(f"{folder}/tokenizer.json").encode_batch(texts)
fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {name: np.array([getattr(encoding, fields[name]) for encoding in encodings]) for name in bundle["inputs"]}
(logits,) = InferenceSession(f"{folder}/{bundle['model']}").run(["logits"], inputs)
for text, row in zip(texts, logits, strict=True):
    print(json.dumps({"text": text, "label": bundle["task"]["labels"][row.argmax()]}))
