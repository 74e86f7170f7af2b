"""How many floating-point operations the networks need, by pencil: two a multiply-add, matrix products and
convolutions alone. The compiled programs are held against these numbers."""

import itertools

from avatar_jax.core.config import DitConfig, TrainingConfig, VaeConfig


def _linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def _blocks(cfg: DitConfig, queries: int, keys: int) -> int:
    """All blocks on `queries` tokens that see `keys`; keys and values of the text are given."""
    width = cfg.width
    layer = 4 * _linear(queries, width, width) + 4 * queries * keys * width
    layer += 2 * _linear(queries, width, cfg.ffn)
    if cfg.text_width:
        layer += 2 * _linear(queries, width, width) + 4 * queries * cfg.text_tokens * width
    return cfg.layers * layer


def _injectors(cfg: DitConfig, queries: int) -> int:
    """Attention of `queries` tokens over the sound of their frame; its keys and values are given."""
    one = 2 * _linear(queries, cfg.width, cfg.width) + 4 * queries * (cfg.audio_tokens + 1) * cfg.width
    return len(cfg.audio_inject) * one


def _ends(cfg: DitConfig, noisy: int) -> int:
    """Patches in, velocity out."""
    cell = cfg.latent_channels * cfg.patch**2
    return _linear(noisy, cell + cfg.condition_channels * cfg.patch**2, cfg.width) + _linear(noisy, cfg.width, cell)


def block(cfg: DitConfig, noisy: int, ring: int, held: int) -> int:
    """One step of one block: `noisy` tokens over `ring` and `held` condition tokens."""
    return _ends(cfg, noisy) + _blocks(cfg, noisy, ring + held) + _injectors(cfg, noisy)


def level(cfg: DitConfig, groups: int) -> int:
    """The embedding of noise levels."""
    width = cfg.width
    return groups * (_linear(1, cfg.freq, width) + _linear(1, width, width) + _linear(1, width, 6 * width))


def hear(cfg: DitConfig, frames: int) -> int:
    """Every injector's side of the sound of `frames` latent frames."""
    width, tokens = cfg.width, frames * (cfg.audio_tokens + 1 + len(cfg.signals))
    turned = (2 if cfg.signals else 1) * _linear(frames, width, 2 * width)
    return len(cfg.audio_inject) * (turned + 2 * _linear(tokens, width, width))


def prefill(cfg: DitConfig, reference: int, motion: dict[int, int]) -> int:
    """Condition tokens through all blocks. motion: tokens by the latent numbers of one."""
    cell = cfg.latent_channels * cfg.patch**2
    tokens = reference + sum(motion.values())
    embedding = _linear(reference, cell, cfg.width) + sum(_linear(n, size, cfg.width) for size, n in motion.items())
    # the last block's keys and values are all that is asked of it
    last = (_blocks(cfg, tokens, tokens) // cfg.layers) - 2 * _linear(tokens, cfg.width, cfg.width)
    return embedding + level(cfg, 1) + _blocks(cfg, tokens, tokens) - last


def joint(cfg: DitConfig, noisy: int, frames: int, held: int) -> int:
    """One bidirectional call: `noisy` tokens of `frames` latent frames and `held` condition tokens see each other."""
    tokens = noisy + held
    total = _ends(cfg, noisy) + _blocks(cfg, tokens, tokens) + level(cfg, frames + (held > 0))
    return total + _injectors(cfg, noisy) + (hear(cfg, frames) if cfg.audio_width else 0)


def audio_encoder(cfg: DitConfig, steps: int) -> int:
    """Sound features of `steps` video frames to tokens: layer mix, two paths of three convolutions, a projection."""
    group, width = cfg.width // cfg.audio_tokens, cfg.width
    half, quarter = -(-steps // 2), -(-steps // 4)
    shared = _linear(half, 3 * group, width // 2) + _linear(quarter, 3 * (width // 2), width)
    entry = _linear(steps, 3 * cfg.audio_width, width) + _linear(steps, 3 * cfg.audio_width, group)
    mix = _linear(steps * cfg.audio_width, cfg.audio_layers, 1)
    return mix + entry + (cfg.audio_tokens + 1) * shared + _linear(quarter, width, width)


def decode(cfg: VaeConfig, latents: int, rows: int, columns: int, *, border: bool = True) -> int:
    """`latents` latent frames of rows x columns to pixels, a stream's step (not its first).

    `border`: count products with the zeros around the picture, as most counters do; XLA does not.
    """
    total = 0

    def taps(size: int, kernel: int) -> int:
        """Products along one side of the picture."""
        return size * kernel - (0 if border else kernel - 1)

    def convolve(inputs: int, outputs: int, time: int, side: int = 1) -> int:
        inside = taps(rows * scale, side) * taps(columns * scale, side)
        return _linear(latents * frames * inside, time * inputs, outputs)

    def residual(inputs: int, outputs: int) -> int:
        flops = convolve(inputs, outputs, cfg.res_frames, 3) + convolve(outputs, outputs, cfg.res_frames, 3)
        return flops + (convolve(inputs, outputs, 1) if inputs != outputs else 0)

    frames, scale = 1, 1
    widths = [cfg.width * m for m in (cfg.mult[-1], *cfg.mult[::-1])]
    top, pixels = widths[0], rows * columns
    total += convolve(cfg.latent_channels, cfg.latent_channels, 1) + convolve(cfg.latent_channels, top, 3, 3)
    total += 2 * residual(top, top) + convolve(top, 4 * top, 1) + 4 * latents * pixels * pixels * top
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        inputs = inputs // 2 if stage else inputs
        for _ in range(cfg.res_blocks + 1):
            total += residual(inputs, outputs)
            inputs = outputs
        if stage < len(cfg.temporal):
            if cfg.temporal[::-1][stage]:
                total += convolve(outputs, 2 * outputs, 3)
                frames *= 2
            scale *= 2
            total += convolve(outputs, outputs // 2, 1, 3)
    return total + convolve(widths[-1], 3 * cfg.pixel_patch**2, 3, 3)


def rounds(cfg: TrainingConfig, blocks: int) -> tuple[int, int]:
    """Of one rollout of so many blocks: all of them called once, and one call that sees it whole."""
    stream, frame = cfg.stream, cfg.tokens_per_frame
    tokens, frames = stream.block_latents * frame, blocks * stream.block_latents
    streamed = sum(block(cfg.dit, tokens, min(n + 1, stream.window_blocks) * tokens, frame) for n in range(blocks))
    whole = _ends(cfg.dit, frames * frame) + _injectors(cfg.dit, frames * frame) + level(cfg.dit, frames)
    whole += _blocks(cfg.dit, frames * frame, (frames + 1) * frame) + prefill(cfg.dit, frame, {})
    heard = stream.audio_context + cfg.vae.temporal_stride * frames
    return streamed, whole + hear(cfg.dit, frames) + audio_encoder(cfg.dit, heard)


def distill(cfg: TrainingConfig) -> int:
    """One rollout of stage two that moves the student and the fake score, with as many calls as it has at most.

    Every block is drawn in `steps` calls and the last done again; the rollout is seen whole by the teacher twice, by
    the fake score once, and once more to learn. A gradient goes through a call at its cost again: the base is frozen.
    Adapters and recomputation are not counted.
    """
    assert cfg.train.distill is not None
    streamed, whole = rounds(cfg, cfg.train.distill.blocks)
    return (cfg.stream.steps + 2) * streamed + (2 + 1 + 2) * whole
