"""What a video is made from, as tokens: text, a reference image, motion, pose, known frames (live_avatar.md 1.3, 1.6).

Motion is packed by age (FramePack): the newest latent at full resolution, the two before it through a 2 x 4 x 4
kernel, the sixteen oldest through a 4 x 8 x 8 one. Their rotary positions are negative and never move.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from avatar_jax.core.config import DitConfig
from avatar_jax.core.spec import Leaf
from avatar_jax.models import inpaint
from avatar_jax.nn import dense, embed, norm
from avatar_jax.nn.rope import Phase, join, phase_at

NOISY, REFERENCE, MOTION = range(3)  # token types
REFERENCE_TIME = 30  # of the reference among the condition tokens, and at the start of a published stream
# Newest first: (name, latents, frames of one token in them, shrink of the token grid, times of the tokens).
BUCKETS = (
    ("x1", 1, 1, 1, (-1,)),
    ("x2", 2, 2, 2, (-3,)),
    ("x4", 16, 4, 4, (-19, -14, -9, -4)),
)
EVERY = tuple(name for name, *_ in BUCKETS)


@flax.struct.dataclass
class Given:
    """What joins the noisy latents of a window."""

    known: jax.Array | None = None  # [B, F, h, w, condition_channels]: mask and known latents, see `inpaint`
    pose: jax.Array | None = None  # [B, F, h, w, C]: latent of a pose video


def spec(cfg: DitConfig) -> dict:
    """Weights of every condition that `cfg` has."""
    width, cell, tree = cfg.width, cfg.latent_channels * cfg.patch**2, {}
    if cfg.token_types:
        tree["type"] = Leaf((3, width), (None, None), "normal", width**-0.5)
    if cfg.pose:
        tree["pose"] = dense.spec(cell, width, (None, "embed"))
    if cfg.motion_latents:
        tree["motion"] = {
            name: dense.spec(cell * frames * shrink**2, width, (None, "embed"))
            for name, _, frames, shrink, _ in BUCKETS
        }
    if cfg.text_width:
        tree["text"] = {
            "in": dense.spec(cfg.text_width, width, (None, "embed")),
            "out": dense.spec(width, width, ("embed", None)),
        }
    if cfg.image_width:
        tree["image"] = {
            "norm_in": norm.affine_spec(cfg.image_width),
            "in": dense.spec(cfg.image_width, cfg.image_width, (None, None)),
            "out": dense.spec(cfg.image_width, width, (None, "embed")),
            "norm_out": norm.affine_spec(width),
        }
    return tree


def embed_text(p: dict, text: jax.Array, cfg: DitConfig) -> jax.Array:
    """Encoder rows [B, n, text_width] to text tokens [B, text_tokens, D]; missing rows are zeros before embedding."""
    padded = jnp.pad(text, ((0, 0), (0, cfg.text_tokens - text.shape[1]), (0, 0)))
    return dense.apply(p["text"]["out"], jax.nn.gelu(dense.apply(p["text"]["in"], padded)))


def embed_image(p: dict, image: jax.Array) -> jax.Array:
    """CLIP rows [B, n, image_width] to image tokens [B, n, D]."""
    q = p["image"]
    h = norm.affine(q["norm_in"], norm.layer_norm(image, norm.TORCH_EPS))
    h = dense.apply(q["out"], jax.nn.gelu(dense.apply(q["in"], h), approximate=False))
    return norm.affine(q["norm_out"], norm.layer_norm(h, norm.TORCH_EPS))


def _typed(p: dict, tokens: jax.Array, kind: int) -> jax.Array:
    return tokens + p["type"][kind] if "type" in p else tokens


def _patches(p: dict, latent: jax.Array, cfg: DitConfig) -> jax.Array:
    """[B, F, h, w, C] to tokens [B, F f, D]."""
    cells = embed.patchify(latent.astype(cfg.compute_dtype), cfg.patch)
    return rearrange(dense.apply(p, cells), "B F f D -> B (F f) D")


def embed_noisy(p: dict, latent: jax.Array, given: Given | None, cfg: DitConfig) -> jax.Array:
    """Noisy latents [B, F, h, w, C] and what joins them to tokens [B, F f, D]."""
    given = given or Given()
    tokens = _patches(p["patch"], latent if given.known is None else jnp.concatenate([latent, given.known], -1), cfg)
    if "pose" in p:  # no pose is the zero latent: its bias still counts
        tokens += p["pose"]["b"] if given.pose is None else _patches(p["pose"], given.pose, cfg)
    return _typed(p, tokens, NOISY)


def embed_reference(p: dict, latent: jax.Array, cfg: DitConfig) -> jax.Array:
    """The latent of the portrait, [B, 1, h, w, C], to tokens [B, f, D]. Where masks are read, it is a known frame."""
    if cfg.condition_channels:
        latent = jnp.concatenate([latent, inpaint.known_latents(jnp.ones(latent.shape[:2]), latent)], -1)
    return _typed(p, _patches(p["patch"], latent, cfg), REFERENCE)


def _pack(p: dict, latents: jax.Array, frames: int, patch: int) -> jax.Array:
    """Tokens of `frames` x `patch` x `patch` latents; what does not fill a patch is left out, as by a convolution."""
    rows, columns = (size // patch * patch for size in latents.shape[2:4])
    cells = rearrange(
        latents[:, :, :rows, :columns],
        "B (F f) (h p) (w q) C -> B (F h w) (C f p q)",
        f=frames,
        p=patch,
        q=patch,
    )
    return dense.apply(p, cells)


def embed_motion(p: dict, latents: jax.Array, cfg: DitConfig, keep: tuple[str, ...] = EVERY) -> jax.Array:
    """Past latents [B, F, h, w, C], oldest first, to motion tokens [B, M, D], newest bucket first.

    Fewer than `motion_latents` are filled up with zeros at the old end, more are cut there.
    """
    missing = max(0, cfg.motion_latents - latents.shape[1])
    past = jnp.pad(latents, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))
    packed, end = [], past.shape[1]
    for name, length, frames, shrink, _ in BUCKETS:
        if name in keep:
            packed.append(_pack(p["motion"][name], past[:, end - length : end], frames, shrink * cfg.patch))
        end -= length
    return jnp.concatenate(packed, 1)


def _thinned(full: int, reduced: int) -> np.ndarray:
    """Row or column positions of a shrunk grid: linspace over the full one, cut to integers (section 1.5)."""
    return np.linspace(0, full - 1, reduced).astype(np.int64)


def motion_phase(
    grid: tuple[int, int], latent_size: tuple[int, int], cfg: DitConfig, keep: tuple[str, ...] = EVERY
) -> Phase:
    """Phases of the motion tokens; grid: token rows and columns of a frame; latent_size: latent rows and columns."""
    parts = [
        phase_at(
            np.array(times),
            *(_thinned(full, size // (shrink * cfg.patch)) for full, size in zip(grid, latent_size, strict=True)),
            head_size=cfg.head_size,
            theta=cfg.rope_theta,
        )
        for name, _, _, shrink, times in BUCKETS
        if name in keep
    ]
    return join(*parts)


def embed_all(
    p: dict,
    reference: jax.Array,
    motion: jax.Array,
    cfg: DitConfig,
    keep: tuple[str, ...] = EVERY,
) -> jax.Array:
    """Reference tokens, then motion tokens: [B, f + M, D]."""
    motions = _typed(p, embed_motion(p, motion, cfg, keep), MOTION)
    return jnp.concatenate([embed_reference(p, reference, cfg), motions], 1)
