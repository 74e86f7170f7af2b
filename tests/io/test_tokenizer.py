"""Prompts to tokens: cleaned, ended, cut and filled up as published."""

import pathlib

import numpy as np
import pytest

from avatar_jax.io.errors import InputError
from avatar_jax.io.tokenizer import Tokenizer, clean
from tests.published import folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "t5" / "spiece.model"
    folder.write_tokenizer(path, 60)
    return Tokenizer(path)


def test_text_is_cleaned():
    assert clean("  a\n cat &amp;amp; a\tdog ") == "a cat & a dog"
    assert clean("scho\u0308n and brÃ¼ck") == "schön and brück"


def test_ids_end_and_are_filled_up(tokenizer: Tokenizer):
    ids, mask = tokenizer.encode("a woman talks", 12)
    count = int(mask.sum())
    assert ids.shape == mask.shape == (1, 12) and ids.dtype == np.int32
    assert 1 < count < 12 and ids[0, count - 1] == 1 and not ids[0, count:].any()
    assert tokenizer.encode("a  woman\ntalks ", 12)[0].tolist() == ids.tolist()


def test_long_text_is_cut_before_its_end_token(tokenizer: Tokenizer):
    ids, mask = tokenizer.encode("a cat sleeps on an old blue boat " * 20, 12)
    assert mask.all() and ids[0, -1] == 1 and (ids[0, :-1] != 1).all()


def test_no_text_is_its_end_token(tokenizer: Tokenizer):
    ids, mask = tokenizer.encode("", 4)
    assert ids.tolist() == [[1, 0, 0, 0]] and mask.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100])
def test_a_file_that_is_no_model(tmp_path: pathlib.Path, content: bytes):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(InputError, match=r"spiece\.model: not a SentencePiece model"):
        Tokenizer(tmp_path / "spiece.model").encode("a", 4)
