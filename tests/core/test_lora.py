"""Adapters: grafted they do what they do merged, alone they learn, and published files are read either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.core import lora, quant, tree
from avatar_jax.core import spec as specs
from avatar_jax.core.config import DitConfig
from avatar_jax.io.convert import wan
from avatar_jax.io.convert.lora import Merged, adapters
from avatar_jax.io.convert.published import Tensors
from avatar_jax.io.errors import InputError
from avatar_jax.models import dit
from avatar_jax.nn import attention, dense
from tests.conftest import ROOT
from tests.published.case import Case
from tests.published.wan import call, network

SCALE = 0.5
CASES = ROOT / "tests" / "golden"


def _drawn(spec: specs.Spec, seed: int) -> dict:
    """Adapters that have an effect."""
    flat = tree.flatten(spec)
    keys = jax.random.split(jax.random.key(seed), len(flat))
    return tree.unflatten(
        {path: 0.2 * jax.random.normal(key, flat[path].shape) for path, key in zip(flat, keys, strict=True)}
    )


@pytest.fixture(scope="module")
def model() -> tuple[dict, DitConfig, Case]:
    case = Case(CASES / "wan_i2v_clip_dit")
    return *network(case, layer_loop="scan"), case


def _velocity(p: dict, cfg: DitConfig, case: Case) -> np.ndarray:
    io = case.tensors()
    return call(p, io["x"], io["t"], io["context"], cfg, known=io["y"], image=io["clip_fea"])


@pytest.mark.parametrize("layer_loop", ["scan", "unroll"])
def test_grafted_is_merged(model, layer_loop: str):
    p, _, case = model
    _, cfg = network(case, layer_loop=layer_loop)
    spec = lora.spec(dit.spec(cfg), rank=3)
    drawn = _drawn(spec, 0)
    grafted, merged = (change(p, drawn, scale=SCALE) for change in (lora.graft, lora.merge))
    ours, theirs = (_velocity(dit.lay_out(weights, cfg), cfg, case) for weights in (grafted, merged))
    largest = np.abs(theirs).max()
    assert np.abs(theirs - case.tensors()["out"]).max() > 0.01 * largest  # the adapters do something
    assert np.abs(ours - theirs).max() <= 1e-6 * largest * cfg.layers
    still = _velocity(lora.graft(p, specs.init(spec, jax.random.key(1)), scale=SCALE), model[1], case)
    np.testing.assert_array_equal(still, _velocity(p, model[1], case))  # b = 0: new adapters change nothing


def test_one_layer_grafted_is_merged():
    spec = {"q": dense.spec(33, 21, (None, None))}
    p, drawn = specs.init(spec, jax.random.key(0)), _drawn(lora.spec(spec, 5, lambda path: path == "q/w"), 1)
    x = jax.random.normal(jax.random.key(2), (4, 33))
    ours, theirs = (dense.apply(change(p, drawn, scale=SCALE)["q"], x) for change in (lora.graft, lora.merge))
    assert float(jnp.abs(ours - theirs).max()) <= 1e-6 * float(jnp.abs(theirs).max())


def test_only_adapters_learn():
    spec = attention.spec(16)
    spec = {"blocks": {"self": spec, "other": {"w": spec["q"]["w"]}}}
    p, drawn = specs.init(spec, jax.random.key(0)), _drawn(lora.spec(spec, 2), 1)
    grafted = lora.graft(p, drawn, scale=SCALE)
    mask = tree.flatten(lora.trainable(grafted))
    x = jax.random.normal(jax.random.key(2), (1, 5, 16))

    def loss(p):
        q, k, v = (dense.apply(p["blocks"]["self"][name], x) for name in "qkv")
        return jnp.square(dense.apply(p["blocks"]["self"]["o"], jax.nn.softmax(q @ k.mT) @ v)).mean()

    slopes = tree.flatten(jax.grad(lambda drawn: loss(lora.graft(p, drawn, scale=SCALE)))(drawn))
    assert all(slope.any() for slope in slopes.values())
    assert slopes.keys() == {path for path, flag in mask.items() if flag}
    assert slopes.keys() == {f"blocks/self/{name}/lora/{side}" for name in "qkvo" for side in "ab"}
    assert jax.tree.structure(lora.trainable(grafted)) == jax.tree.structure(grafted)  # as an optimiser's mask must be


def test_adapters_run_beside_quantised_weights():
    spec = {"blocks": {"self": {"q": dense.spec(32, 32, (None, None))}}}
    p, drawn = specs.init(spec, jax.random.key(0)), _drawn(lora.spec(spec, 2), 1)
    q = quant.quantise_tree(p, quant.INT8)
    x = jax.random.normal(jax.random.key(2), (4, 32))
    layer = lora.graft(q, drawn, scale=SCALE)["blocks"]["self"]["q"]
    alone, node = dense.apply(q["blocks"]["self"]["q"], x), drawn["blocks"]["self"]["q"]["lora"]
    np.testing.assert_allclose(dense.apply(layer, x), alone + SCALE * (x @ node["a"]) @ node["b"], atol=1e-5)
    with pytest.raises(ValueError, match="blocks/self/q is quantised already"):
        lora.merge(q, drawn, scale=SCALE)
    with pytest.raises(ValueError, match="adapters for weights that are not there: blocks/self/q"):
        lora.graft({"head": p["blocks"]}, drawn, scale=SCALE)


def test_the_published_size():
    """live_avatar.md section 1.10: 448 modules, 896 tensors, 676,331,520 numbers at rank 128."""
    cfg = wan.dit_config(wan.PUBLISHED["s2v_14b"], Tensors({}), layer_loop="scan")
    flat = tree.flatten(lora.spec(dit.spec(cfg), rank=128))
    assert sum(leaf.shape[0] for leaf in flat.values()) == 896
    assert specs.count(tree.unflatten(flat)) == 676_331_520


def _published() -> tuple[Tensors, dict, dict, Case]:
    """The weights of a LoRA case that we have a name for, their spec and their table."""
    case = Case(CASES / "lora_merge")
    about, weights = case.about["config"], case.published()
    described = {**wan.PUBLISHED["t2v_1b3"], "dim": about["dim"], "num_heads": about["heads"], "ffn_dim": about["ffn"]}
    cfg = wan.dit_config(described | {"num_layers": about["layers"]}, weights, layer_loop="scan")
    injectors = {"attention": attention.spec(cfg.width), "adain": dense.spec(cfg.width, 2 * cfg.width, (None, None))}
    spec = dit.spec(cfg) | {"audio": {"injectors": specs.stack(injectors, len(about["inj"]))}}
    sources = dict(wan.table(cfg)) | wan._audio()
    known = {
        path: leaf
        for path, leaf in tree.flatten(spec).items()
        if set(sources[path].keys(leaf)) <= weights.names() and not path.endswith("/b")
    }
    return weights, tree.unflatten(known), sources, case


def test_a_published_file_grafted_is_merged_at_conversion():
    weights, spec, sources, case = _published()
    file, alpha = case.published("lora"), case.about["config"]["alpha"]
    found = adapters(file, spec, sources)
    assert len(file.names()) == sum(len(leaf) for leaf in tree.flatten(found).values())
    merged = Merged(weights, file, alpha)
    scale, x = alpha / case.about["config"]["rank"], jax.random.normal(jax.random.key(0), (3, 24))
    both = {path: leaf for path, leaf in tree.flatten(spec).items() if f"{path[:-2]}/lora/a" in tree.flatten(found)}
    base = tree.unflatten({path: np.stack(list(sources[path].pieces(leaf, weights))) for path, leaf in both.items()})
    grafted = tree.flatten(lora.graft(base, found, scale=scale))
    for path, leaf in both.items():
        for layer, w in enumerate(sources[path].pieces(leaf, merged)):
            module = path[:-2]
            node = {side: grafted[f"{module}/lora/{side}"][layer] for side in "ab"}
            inputs = jnp.resize(x, (3, w.shape[0]))
            ours = dense.apply({"w": grafted[path][layer], "lora": node}, inputs)
            np.testing.assert_allclose(ours, inputs @ w, atol=1e-6 * float(jnp.abs(inputs @ w).max()), err_msg=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.1.ffn.0.lora_A.default.weight"), "leaves out blocks.1.ffn.0.lora_A; merge it"),
        (lambda t: t.update({"other.lora_A.weight": np.ones((4, 24), np.float32)}), "1 tensors that are no adapters"),
        (
            lambda t: [t.update({f"blocks.{i}.ffn.2.lora_B.default.weight": np.ones((9, 4))}) for i in range(2)],
            "for another model: blocks.0.ffn.2",
        ),
    ],
    ids=["half", "stranger", "shape"],
)
def test_a_file_that_does_not_fit_is_refused(change, words: str):
    _, spec, sources, case = _published()
    tensors = dict(case.published("lora")._tensors)
    change(tensors)
    with pytest.raises(InputError, match=words):
        adapters(Tensors(tensors), spec, sources)
