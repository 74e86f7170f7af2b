"""The prompt's tokens: UMT5's SentencePiece model, and the cleaning that Wan's prompts go through."""

import html
import os
import pathlib

import ftfy
import numpy as np
import sentencepiece

from avatar_jax.io.errors import InputError


def clean(prompt: str) -> str:
    """Mended Unicode, no HTML entities (some are escaped twice), single spaces (live_avatar.md section 3)."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


class Tokenizer:
    """Text to token ids; InputError if the file is not a SentencePiece model."""

    def __init__(self, path: str | os.PathLike[str]):
        try:
            self._model = sentencepiece.SentencePieceProcessor()
            self._model.LoadFromSerializedProto(pathlib.Path(path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path}: not a SentencePiece model; copy it again from the published folder") from error

    def encode(self, prompt: str, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids with the end token, cut or filled up to `length`, and 1 where there is one: int32 [1, length] each."""
        ids = [*self._model.EncodeAsIds(clean(prompt))[: length - 1], self._model.eos_id()]
        padded = np.zeros((2, 1, length), np.int32)
        padded[0, 0, : len(ids)], padded[1, 0, : len(ids)] = ids, 1
        return padded[0], padded[1]
