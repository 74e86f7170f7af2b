"""Merging LoRA files, with and without the prefix, with whole tensors among them."""

from avatar_jax.io.convert.lora import Merged
from tests.published.case import Case, Outputs


def merge(case: Case) -> dict[str, float]:
    """Every changed tensor of both files; the others stay as they are, bit by bit."""
    base, io, alpha = case.published(), case.tensors(), case.about["config"]["alpha"]
    outputs: Outputs = {}
    for prefix, file in (("merged_full.", "lora_full"), ("merged.", "lora")):
        merged = Merged(base, case.published(file), alpha)
        outputs |= {name: merged.read(name.removeprefix(prefix)) for name in io if name.startswith(prefix)}
    for name in sorted(base.names() - set(case.about["changed_keys"])):
        assert (merged.read(name) == base.read(name)).all(), name
    return case.worst(outputs)
