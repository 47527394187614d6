"""Stage 0: a CLIP tokenizer whose vocabulary is made from the captions.

Any text can be encoded: what the captions do not hold falls back to single bytes.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .common import MODEL_DIR
from .things import all_captions, load_things

# CLIP's own splitting of text into words (transformers' CLIPTokenizer uses the same pattern).
WORD = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train(captions: list[str], vocab_size: int = 1200) -> CLIPTokenizer:
    """Byte-pair merges learnt from the captions, in the file format of CLIP's tokenizer."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps({word: index for index, word in enumerate(words)}))
        merges_file.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
        return CLIPTokenizer(
            vocab=str(vocab_file), merges=str(merges_file), model_max_length=77, pad_token="<|endoftext|>"
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=MODEL_DIR, help="the model's folder")
    options = arguments.parse_args()
    tokenizer = train(all_captions(load_things()))
    tokenizer.save_pretrained(options.out / "tokenizer")
    print(f"{len(tokenizer)} tokens -> {options.out / 'tokenizer'}")


if __name__ == "__main__":
    main()
