"""Is a configuration possible? Each rule names the dotted field, its value and the constraint."""

from typing import Any, TypeVar

from avatar_jax.core import config as configs

Run = TypeVar("Run", bound=configs.PictureConfig)
LEVELS = ("shifted", "published")
HISTORIES = ("timestep", "clean", "noised")
AUDIO_HISTORIES = ("heard", "repeated")
DRIVERS = ("spmd", "chain")
ENGINES = ("sink", "knot")
REMATS = ("none", "layer", "attended", "products")
SOLVERS = ("unipc", "dpm", "euler")
_REACH = 2  # video frames after a frame that its wav2vec2 feature is interpolated from


def _require(condition: bool, field: str, value: Any, constraint: str) -> None:
    if not condition:
        raise ValueError(f"config.{field}={value!r}: {constraint}")


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, field, value, f"must be one of {', '.join(map(repr, known))}")


def _picture(cfg: configs.PictureConfig) -> None:
    v, d, a = cfg.video, cfg.dit, cfg.vae
    for name, size in (("height", v.height), ("width", v.width)):
        _require(size > 0 and size % cfg.cell == 0, f"video.{name}", size, f"must be a positive multiple of {cfg.cell}")
    _require(v.area == 0 or v.area >= 64 * 64, "video.area", v.area, "must be 0 or at least 4096 pixels")
    _require(len(a.temporal) == len(a.mult) - 1, "vae.temporal", a.temporal, "one per downsampling")
    _require(a.temporal_stride == 4, "vae.temporal", a.temporal, "the audio encoder needs stride 4")
    _require(d.latent_channels == a.latent_channels, "dit.latent_channels", d.latent_channels, "must equal vae's")
    _require(d.heads > 0 and d.width % (2 * d.heads) == 0, "dit.heads", d.heads, f"must split width={d.width} evenly")
    _require(all(0 <= i < d.layers for i in d.audio_inject), "dit.audio_inject", d.audio_inject, "block out of range")
    _one_of("dit.layer_loop", d.layer_loop, ("scan", "fold", "unroll"))
    _one_of("dit.remat", d.remat, REMATS)


def _text(text: configs.Umt5Config | None, dit: configs.DitConfig) -> None:
    width = text.width if text else 0
    _require(dit.text_width == width, "dit.text_width", dit.text_width, f"must equal the text encoder's width {width}")


def _mel(m: configs.MelConfig, fps: int) -> None:
    _require(fps == m.fps, "sound.fps", m.fps, f"must equal video.fps={fps}")
    _require(m.samples_per_frame % m.hop_samples == 0, "sound.hop_samples", m.hop_samples, "must divide a frame")
    _require(m.window_samples <= m.fft, "sound.window_samples", m.window_samples, f"must not exceed fft={m.fft}")


def _signals(d: configs.DitConfig) -> None:
    written = all(isinstance(signal, configs.Signal) for signal in d.signals)
    _require(written, "dit.signals", d.signals, "must be Signals, written as in configs/tiny_driven.py")
    names = [signal.name for signal in d.signals]
    _require(len(set(names)) == len(names), "dit.signals", names, "each name once")
    sized = all(signal.spread and min(signal.spread) > 0.0 for signal in d.signals)
    _require(sized, "dit.signals", d.signals, "each is a name and the usual sizes of its numbers, above 0")
    _require(not names or d.audio_width > 0, "dit.signals", names, "the injectors of the sound read them: needs audio")
    _require(not names or d.width % 4 == 0, "dit.width", d.width, "must be a multiple of 4 for dit.signals")


def _stream(cfg: configs.Config) -> None:
    d, s, sound, fps = cfg.dit, cfg.stream, cfg.sound, cfg.video.fps
    _require(sound.audio_hz % fps == 0, "sound.audio_hz", sound.audio_hz, f"must be a multiple of fps={fps}")
    if isinstance(sound, configs.MelConfig):
        _mel(sound, fps)
        _require(s.audio_ahead == 0, "stream.audio_ahead", s.audio_ahead, "log-mel features need nothing ahead: 0")
    else:
        _require(s.audio_ahead >= _REACH, "stream.audio_ahead", s.audio_ahead, f"must be at least {_REACH}")
        _require(s.audio_past >= 0, "stream.audio_past", s.audio_past, "must not be negative")
    _require(d.audio_width == sound.features, "dit.audio_width", d.audio_width, f"must equal {sound.features} of sound")
    _require(d.audio_layers == sound.feature_layers, "dit.audio_layers", d.audio_layers, f"{sound.feature_layers}")
    _require(d.width % d.audio_tokens == 0, "dit.audio_tokens", d.audio_tokens, f"must divide width={d.width}")
    _signals(d)
    _text(cfg.text, d)
    _one_of("stream.engine", s.engine, ENGINES)
    _one_of("stream.history", s.history, HISTORIES)
    level, noised = s.history_level, s.history == "noised"
    _require((0 < level <= 1) if noised else level == 0, "stream.history_level", level, "in 0..1 if 'noised', else 0")
    _one_of("stream.levels", s.levels, LEVELS)
    _one_of("stream.audio_history", s.audio_history, AUDIO_HISTORIES)
    for name in ("steps", "block_latents", "window_blocks", "warm_latents"):
        _require(getattr(s, name) >= 1, f"stream.{name}", getattr(s, name), "must be at least 1")
    _require(s.shift > 0, "stream.shift", s.shift, "must be positive")
    low, high = s.reference_ahead
    _require(low <= high, "stream.reference_ahead", s.reference_ahead, "the smaller distance comes first")
    _require(s.adapt_blocks >= 0, "stream.adapt_blocks", s.adapt_blocks, "must not be negative")
    still = max(1, d.motion_latents)
    _require(s.warm_latents <= still, "stream.warm_latents", s.warm_latents, f"at most {still} are known")
    _require(s.audio_context >= 5, "stream.audio_context", s.audio_context, "the encoder sees 5 frames back")
    _require(s.audio_context % 4 == 1, "stream.audio_context", s.audio_context, "must be 1 modulo 4")
    if s.engine == "knot":
        _knot(cfg)
    else:
        _require(s.knot is None, "stream.knot", s.knot, "only config.stream.engine='knot' ties a knot: must be None")
        _require(d.condition_channels == 0, "dit.condition_channels", d.condition_channels, "nothing is known here: 0")


def _knot(cfg: configs.Config) -> None:
    s, d, knot = cfg.stream, cfg.dit, cfg.stream.knot
    if knot is None:
        raise ValueError("config.stream.knot=None: the knot engine needs its lengths, as in configs/tiny_knot.py")
    length, channels = s.block_latents, 4 + d.latent_channels
    _require(1 <= knot.latents <= length, "stream.knot.latents", knot.latents, f"must be 1 to {length}, one block")
    _require(knot.window >= length, "stream.knot.window", knot.window, f"must be at least the block's {length}")
    caught_up = f"must be at least the block's {length}, or the stream passes its reference"
    _require(knot.reference_jump >= length, "stream.knot.reference_jump", knot.reference_jump, caught_up)
    start = knot.reference_start
    _require(start >= 0, "stream.knot.reference_start", start, "must not be negative")
    _require(s.history == "clean", "stream.history", s.history, "a knot is never remembered, so it needs 'clean'")
    wanted = f"must be {channels}: mask and latents of the knot"
    _require(d.condition_channels == channels, "dit.condition_channels", d.condition_channels, wanted)
    stages, driver = cfg.mesh.stages, cfg.mesh.driver
    _require(stages == 1, "mesh.stages", stages, "a block needs the last one's knot, so the knot engine has 1")
    _require(driver == "spmd", "mesh.driver", driver, "a chain is of stages, and the knot engine has one: 'spmd'")


def stages(count: int, cfg: configs.Config) -> int:
    """Denoising steps of each of `count` pipeline stages.

    Raises:
      ValueError: a number of stages that does not divide the steps, or a stream that cannot be pipelined.
    """
    s = cfg.stream
    divides = count >= 1 and s.steps % count == 0
    _require(divides, "mesh.stages", count, f"must divide config.stream.steps={s.steps}")
    timestep = count == 1 or s.history == "timestep"
    _require(timestep, "stream.history", s.history, f"{count} stages need 'timestep': a last pass would wait")
    known = count == 1 or s.adapt_blocks == 0 or s.adapt_blocks >= count
    late = f"0 or at least the {count} stages, since the first latent is known when it leaves the last"
    _require(known, "stream.adapt_blocks", s.adapt_blocks, late)
    return s.steps // count


def bands(count: int, cfg: configs.PictureConfig, field: str = "mesh.context") -> None:
    """Raises ValueError where `count` devices cannot share the token rows of a latent frame evenly."""
    rows = cfg.grid[0]
    divides = count >= 1 and rows % count == 0
    _require(divides, field, count, f"must divide the {rows} token rows of {cfg.video.height} pixels")


def _mesh(cfg: configs.Config) -> None:
    stages(cfg.mesh.stages, cfg)
    bands(cfg.mesh.context, cfg)
    tensor, d = cfg.mesh.tensor, cfg.dit
    for name, size in (("heads", d.heads), ("ffn", d.ffn)):
        _require(tensor >= 1 and size % tensor == 0, "mesh.tensor", tensor, f"must divide config.dit.{name}={size}")
    _one_of("mesh.driver", cfg.mesh.driver, DRIVERS)
    data, streams, chain = cfg.mesh.data, cfg.mesh.streams, cfg.mesh.driver == "chain"
    _require(data >= 1, "mesh.data", data, "must be at least 1")
    _require(streams >= 1 and streams % data == 0, "mesh.streams", streams, f"must be a multiple of mesh.data={data}")
    for name, size in (("context", cfg.mesh.context), ("tensor", tensor)):
        _require(size == 1 or not chain, f"mesh.{name}", size, "a chain has one device a stage: 1")
    _require(streams == 1 or not chain, "mesh.streams", streams, "a chain has one stream: 1")
    if cfg.mesh.share_first:
        alone = cfg.mesh.stages > 1 and streams == 1 and not chain
        _require(alone, "mesh.share_first", True, "needs more than one stage, one stream and driver='spmd'")
        bands(cfg.mesh.stages * cfg.mesh.context, cfg, "mesh.stages x context")


def _clip(cfg: configs.ClipConfig) -> None:
    _text(cfg.text, cfg.dit)
    _require(cfg.dit.audio_width == 0, "dit.audio_width", cfg.dit.audio_width, "a clip from a prompt has no sound: 0")
    _one_of("sample.solver", cfg.sample.solver, SOLVERS)
    for name in ("steps", "latents"):
        _require(getattr(cfg.sample, name) >= 1, f"sample.{name}", getattr(cfg.sample, name), "must be at least 1")
    _require(cfg.sample.shift > 0, "sample.shift", cfg.sample.shift, "must be positive")


def _optim(o: configs.OptimConfig, field: str) -> None:
    _require(o.accumulate >= 1, f"{field}.accumulate", o.accumulate, "must be at least 1")
    _require(o.batch % o.accumulate == 0, f"{field}.batch", o.batch, f"must be a multiple of accumulate={o.accumulate}")
    _require(o.spike == 0 or o.spike > 1, f"{field}.spike", o.spike, "must be above 1, or 0 for none")
    _require(0 <= o.warmup < max(o.steps, 1), f"{field}.warmup", o.warmup, f"must be below steps={o.steps}")


def _train_mesh(cfg: configs.TrainingConfig) -> None:
    mesh, d, o = cfg.train.mesh, cfg.dit, cfg.train.dit
    for name in ("data", "fsdp", "tensor"):
        _require(getattr(mesh, name) >= 1, f"train.mesh.{name}", getattr(mesh, name), "must be at least 1")
    for name, size in (("heads", d.heads), ("ffn", d.ffn)):
        divides = size % mesh.tensor == 0
        _require(divides, "train.mesh.tensor", mesh.tensor, f"must divide config.dit.{name}={size}")
    _require(d.width % mesh.fsdp == 0, "train.mesh.fsdp", mesh.fsdp, f"must divide config.dit.width={d.width}")
    _require(cfg.train.dit_twin >= 0.0, "train.dit_twin", cfg.train.dit_twin, "must not be negative; 0: no twins")
    twins = 2 if cfg.train.dit_twin else 1
    pieces = mesh.data * mesh.fsdp * o.accumulate * twins
    told = f"must be a multiple of {pieces}, train.mesh.data x fsdp x train.dit.accumulate" + " x 2 for twins" * (
        twins - 1
    )
    _require(o.batch % pieces == 0, "train.dit.batch", o.batch, told)


def _distill(d: configs.DistillConfig, cfg: configs.TrainingConfig) -> None:
    for name in ("student", "fake"):
        _optim(getattr(d, name), f"train.distill.{name}")
    if d.follow:
        _optim(d.follow, "train.distill.follow")
        history = "knot" if cfg.stream.knot else cfg.stream.history
        told = "None: only a past at the step's own level is led (stream.history='timestep', no knot)"
        _require(history == "timestep", "train.distill.follow", "OptimConfig", told)
    _require(d.rank >= 0, "train.distill.rank", d.rank, "must not be negative; 0: all weights move")
    _require(d.every >= 1, "train.distill.every", d.every, "must be at least 1")
    most = cfg.train.dit_blocks
    _require(1 <= d.blocks <= most, "train.distill.blocks", d.blocks, f"1 to train.dit_blocks={most}, what data has")
    rows = cfg.train.mesh.data * cfg.train.mesh.fsdp
    told = f"must be a multiple of {rows}, train.mesh.data x fsdp"
    _require(d.student.batch % rows == 0, "train.distill.student.batch", d.student.batch, told)
    _require(0.0 <= d.anchored <= 1.0, "train.distill.anchored", d.anchored, "a share, 0 to 1")
    _require(d.patience >= 0, "train.distill.patience", d.patience, "must not be negative; 0: never ends early")


def _finetune(f: configs.FinetuneConfig, cfg: configs.TrainingConfig) -> None:
    _optim(f.optim, "train.finetune.optim")
    _require(f.rank >= 1, "train.finetune.rank", f.rank, "must be at least 1: what is learned is adapters")
    _require(0.0 < f.held_out < 1.0, "train.finetune.held_out", f.held_out, "a share of the clips, between 0 and 1")
    pieces = cfg.train.mesh.data * cfg.train.mesh.fsdp * f.optim.accumulate
    told = f"must be a multiple of {pieces}, train.mesh.data x fsdp x train.finetune.optim.accumulate"
    _require(f.optim.batch % pieces == 0, "train.finetune.optim.batch", f.optim.batch, told)


def validate(cfg: Run) -> Run:
    """Returns `cfg` if it describes a possible system; raises ValueError naming the dotted field otherwise."""
    _picture(cfg)
    if isinstance(cfg, configs.ClipConfig):
        _clip(cfg)
    if isinstance(cfg, configs.Config):
        _stream(cfg)
        _mesh(cfg)
    if isinstance(cfg, configs.TrainingConfig):
        frames = cfg.data.video_frames
        _require(frames % cfg.block_frames == 0, "data.video_frames", frames, "whole blocks")
        dropped = cfg.train.dit_drop_signal
        _require(0.0 <= dropped <= 1.0, "train.dit_drop_signal", dropped, "a share, 0 to 1")
        for name in ("vae", "decoder", "dit"):
            _optim(getattr(cfg.train, name), f"train.{name}")
        _train_mesh(cfg)
        beside = cfg.train.dit_beside
        _require(not (beside and cfg.text), "train.dit_beside", beside, "two speakers have two texts: must be 0")
        if cfg.train.distill:
            _distill(cfg.train.distill, cfg)
        if cfg.train.finetune:
            _finetune(cfg.train.finetune, cfg)
    return cfg
