"""The configuration schema: typed dataclasses, split by meaning; `core/check.py` validates them at the door.

Modules under `configs/` return a `Config` from `get_config()`; absl overrides fields (`--config.stream.steps=8`).
Dataclasses are hashable and treated as frozen after `check.validate`, so they are static arguments under `jax.jit`.
"""

import dataclasses
from typing import Any, NamedTuple

from avatar_jax.core.effort import DistillConfig, FinetuneConfig, OptimConfig, TrainMesh


@dataclasses.dataclass(unsafe_hash=True)
class VideoConfig:
    """Pixel geometry. Sizes in pixels, `fps` in frames a second."""

    height: int
    width: int
    fps: int
    area: int = 0  # above 0: a budget of pixels, in which the portrait's own shape chooses height and width
    drawn: bool = False  # faces of the drawn world: the lip-sync proxy can read them


@dataclasses.dataclass(unsafe_hash=True)
class MelConfig:
    """Causal log-mel front end (samples, hertz)."""

    audio_hz: int
    fps: int
    hop_samples: int
    window_samples: int
    fft: int
    mels: int
    low_hz: float
    high_hz: float
    floor: float

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one video frame."""
        return self.audio_hz // self.fps

    @property
    def feature_layers(self) -> int:
        """Layers of features of one video frame."""
        return 1

    @property
    def features(self) -> int:
        """Width of one video frame's feature vector."""
        return self.samples_per_frame // self.hop_samples * self.mels


@dataclasses.dataclass(unsafe_hash=True)
class VaeConfig:
    """Causal video VAE (Wan 2.1 form). Spatial stride = pixel_patch * 2^(stages-1), temporal = 2^sum(temporal)."""

    width: int  # channels of the first stage
    mult: tuple[int, ...]  # channel multiple of each stage
    temporal: tuple[bool, ...]  # which of the len(mult)-1 downsamplings halve time too
    res_blocks: int
    res_frames: int  # time kernel of the residual blocks: 3 for Wan; 1 leaves time to the resampling and the ends
    latent_channels: int
    pixel_patch: int  # pixels folded into channels before the first convolution (Wan 2.2 form); 1 for Wan 2.1

    @property
    def spatial_stride(self) -> int:
        """Pixels of one latent, in each direction."""
        return self.pixel_patch * 2 ** (len(self.mult) - 1)

    @property
    def temporal_stride(self) -> int:
        """Video frames of one latent frame (after the first)."""
        return 2 ** sum(self.temporal)


class Signal(NamedTuple):
    """What drives the picture beside the sound: some numbers a video frame, each a deviation from rest in its unit."""

    name: str
    spread: tuple[float, ...]  # the usual size of each number, by which the network divides it

    @property
    def width(self) -> int:
        """Numbers of one video frame."""
        return len(self.spread)


@dataclasses.dataclass(unsafe_hash=True)
class DitConfig:
    """Causal diffusion transformer (Wan block form)."""

    width: int
    heads: int
    layers: int
    ffn: int
    freq: int  # sinusoid features of the timestep
    patch: int  # latent pixels of one token, each direction
    latent_channels: int
    condition_channels: int  # mask and known latents beside the noisy ones (Wan image to video: 20); 0 for none
    token_types: bool  # learned embeddings tell noisy, reference and motion tokens apart (Wan S2V)
    pose: bool  # a pose latent joins the noisy tokens (Wan S2V)
    motion_latents: int  # past latents packed into motion tokens (Wan S2V: 19); 0 for none
    text_width: int  # 0 leaves text cross-attention out
    text_tokens: int
    image_width: int  # CLIP features in the cross-attention (Wan 2.1 image to video: 1280); 0 for none
    audio_width: int  # features of one video frame; 0 leaves sound out
    audio_layers: int  # feature layers mixed by learned weights (25 for wav2vec2, 1 for mel)
    audio_tokens: int  # local tokens of one latent frame, padding token not counted
    audio_inject: tuple[int, ...]  # block indices followed by an audio injector
    eps: float
    rope_theta: float
    layer_loop: str  # "scan" of the layers between injectors, "fold" of all, or "unroll"
    compute_dtype: str
    attention: str  # kernel name, see avatar_jax/nn/attention.py
    signals: tuple[Signal, ...] = ()  # read by the audio injectors, a token a latent frame each
    remat: str = "none"  # what a layer keeps for its backward pass, see avatar_jax/nn/remat.py

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


@dataclasses.dataclass(unsafe_hash=True)
class Umt5Config:
    """UMT5 text encoder."""

    vocabulary: int
    width: int
    attention_width: int
    heads: int
    layers: int
    ffn: int
    buckets: int  # of relative positions, both directions
    reach: int  # distance at which the buckets end
    eps: float


@dataclasses.dataclass(unsafe_hash=True)
class Wav2Vec2Config:
    """wav2vec 2.0 encoder in its "stable layer norm" form (XLSR)."""

    audio_hz: int
    convolutions: tuple[tuple[int, int, int], ...]  # channels, kernel, stride
    width: int
    heads: int
    layers: int
    ffn: int
    position_kernel: int
    position_groups: int
    eps: float

    @property
    def feature_layers(self) -> int:
        """Layers of features of one video frame: the first layer's input and every layer's output."""
        return self.layers + 1

    @property
    def features(self) -> int:
        """Width of one video frame's feature vector."""
        return self.width


@dataclasses.dataclass(unsafe_hash=True)
class KnotConfig:
    """Blocks tied by a knot, a reference that runs ahead (knot_forcing.md section 1.3). Lengths in latent frames."""

    latents: int  # k: drawn beyond a block, as the next one's first
    window: int  # L: what attention sees of the stream, the block included, the knot not
    reference_start: int  # n0: rope position of the reference, before which it never stands
    reference_jump: int  # s: how far it jumps on when the stream would reach it


@dataclasses.dataclass(unsafe_hash=True)
class StreamConfig:
    """Block autoregression. Lengths in latent frames unless named otherwise."""

    engine: str  # "sink": blocks of their own, a reference that rolls with them; "knot": as `knot` says
    steps: int  # denoising steps of one block
    shift: float  # flow-matching time shift
    levels: str  # "shifted": uniform levels shifted once; "published": the released sampler's table
    block_latents: int
    window_blocks: int  # attention window of the sink engine, the current block included
    history: str  # "timestep": a memory a step, at its noise level; else one, left "clean" or "noised" by a last pass
    history_level: float  # noise level of a "noised" history, in 0..1
    motion: bool  # whether a model that reads past motion is told that the portrait stood still
    reference_ahead: tuple[int, int]  # rope distance of the reference from the block's first latent, drawn per call
    reference_from: int  # rope position before which the reference never stands
    adapt_blocks: int  # blocks after which the reference becomes the stream's first latent; 0: never
    warm_latents: int  # still latents that the decoder has seen before block 0
    audio_history: str  # left context of a block's sound: "heard", or the block's first frame "repeated"
    audio_context: int  # video frames of left context given to the audio encoder
    audio_past: int  # video frames before a block that wav2vec2 hears with it
    audio_ahead: int  # video frames after a block that it hears, and waits for
    seed: int
    knot: KnotConfig | None = None  # of the knot engine, which leaves window_blocks and the two reference fields unread

    @property
    def calls(self) -> int:
        """Network calls of one block."""
        return self.steps + (self.history != "timestep")

    @property
    def memories(self) -> int:
        """Key/value memories of one stream."""
        return self.steps if self.history == "timestep" else 1

    @property
    def drawn_latents(self) -> int:
        """Latent frames that are drawn for a block: its own, and the knot."""
        return self.block_latents + (self.knot.latents if self.knot else 0)

    @property
    def noise_latents(self) -> int:
        """Latent frames of noise that a block takes; with a knot every step takes its own."""
        return self.drawn_latents * (self.steps if self.knot else 1)

    @property
    def memory_latents(self) -> int:
        """Latent frames that the key/value memory has room for."""
        return self.knot.window + self.knot.latents if self.knot else self.window_blocks * self.block_latents


@dataclasses.dataclass(unsafe_hash=True)
class MeshConfig:
    """Streams, and their devices: data x stages x context x tensor."""

    streams: int  # at once, divided evenly over the rows of `data`
    data: int  # rows of devices, each with streams of its own
    stages: int  # that share a block's steps, each with its own memories; 1: one after the other on one device
    tensor: int  # that split each layer's heads and inner width
    driver: str  # "spmd": one program for all, any mesh; "chain": a program a stage, one stream, one host
    context: int = 1  # that share the rows of every latent frame
    share_first: bool = False  # a stream's first block is drawn by all stages together, row by row

    @property
    def devices(self) -> int:
        """Devices that denoise."""
        return self.data * self.stages * self.context * self.tensor


@dataclasses.dataclass(unsafe_hash=True)
class SampleConfig:
    """Many-step sampling of a whole clip."""

    solver: str  # "unipc", "dpm" or "euler"
    steps: int
    shift: float
    guidance: float  # classifier-free guidance scale g: u + g (c - u)
    latents: int  # latent frames of the clip, the first one decoding to a single video frame
    seed: int


@dataclasses.dataclass(unsafe_hash=True)
class DataConfig:
    """Training clips of the drawn world."""

    seed: int
    clips: int
    video_frames: int
    workers: int  # threads that draw ahead of the training step
    performed: float = 0.0  # share of clips whose signals wander through their range, and are never dropped
    twinned: bool = False  # each clip comes with another of the same moment that differs in one small signal


@dataclasses.dataclass(unsafe_hash=True)
class TrainConfig:
    """What each training stage needs beside the networks."""

    vae: OptimConfig
    vae_image_steps: int  # first steps on single frames, before clips
    vae_clip_latents: int  # latent frames of a training clip after the first
    vae_segment_latents: int  # of which one update sees so many, its history carried over
    vae_kl: float
    decoder: OptimConfig  # last, the latents as they are: the decoder alone, on squared error
    dit: OptimConfig
    dit_blocks: int  # blocks of a training window
    dit_shift: float  # time shift of the training noise law
    dit_clean: float  # share of nearly clean blocks, the history a stream sees
    dit_drop_audio: float
    dit_motion: float  # share of the loss that goes where the picture moves
    dit_reference_span: tuple[int, int]  # rope position of the reference relative to the window's first latent
    dit_drop_signal: float = 0.0  # share of windows that lack a signal, wholly or in part; each signal by itself
    dit_whole: float = 0.0  # share of steps that see a window whole, at one noise level: they make the teacher
    dit_twin: float = 0.0  # weight of the error of how a window differs from its twin, where there is one
    dit_beside: int = 0  # every so many batches hold pairs of pictures side by side, two speakers; 0: none
    distill: DistillConfig | None = None
    finetune: FinetuneConfig | None = None
    mesh: TrainMesh = dataclasses.field(default_factory=TrainMesh)


@dataclasses.dataclass(unsafe_hash=True)
class PictureConfig:
    """What every run has: a picture, and the two networks that draw it."""

    name: str
    video: VideoConfig
    vae: VaeConfig
    dit: DitConfig

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent rows and columns."""
        return self.video.height // self.vae.spatial_stride, self.video.width // self.vae.spatial_stride

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of one latent frame."""
        rows, columns = self.latent_size
        return rows // self.dit.patch, columns // self.dit.patch

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        rows, columns = self.grid
        return rows * columns

    @property
    def cell(self) -> int:
        """Pixels of one token, in each direction."""
        return self.vae.spatial_stride * self.dit.patch


@dataclasses.dataclass(unsafe_hash=True)
class ClipConfig(PictureConfig):
    """A clip from a prompt, drawn whole."""

    text: Umt5Config
    sample: SampleConfig


@dataclasses.dataclass(unsafe_hash=True)
class Config(PictureConfig):
    """A stream: a portrait and sound, block after block."""

    sound: MelConfig | Wav2Vec2Config
    text: Umt5Config | None
    stream: StreamConfig
    mesh: MeshConfig

    @property
    def mel(self) -> MelConfig:
        """The log-mel front end. ValueError where wav2vec2 listens instead."""
        if isinstance(self.sound, MelConfig):
            return self.sound
        raise ValueError("config.sound: must be log-mel features, which is what is trained here")

    @property
    def motion_latents(self) -> int:
        """Latents of past motion that the model is told."""
        return self.dit.motion_latents if self.stream.motion else 0

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one video frame."""
        return self.sound.audio_hz // self.video.fps

    @property
    def block_frames(self) -> int:
        """Video frames of one block."""
        return self.stream.block_latents * self.vae.temporal_stride

    @property
    def heard_frames(self) -> int:
        """Video frames of sound that one block is drawn from: its own, and those of the knot."""
        return self.stream.drawn_latents * self.vae.temporal_stride

    @property
    def block_samples(self) -> int:
        """Audio samples of one block."""
        return self.block_frames * self.samples_per_frame


@dataclasses.dataclass(unsafe_hash=True)
class TrainingConfig(Config):
    """A stream's networks and how they are trained."""

    data: DataConfig
    train: TrainConfig

    @property
    def window_latents(self) -> int:
        """Latent frames of a training window: its blocks, and the last one's knot."""
        return self.train.dit_blocks * self.stream.block_latents + self.stream.drawn_latents - self.stream.block_latents


def sized(cfg: PictureConfig, height: int, width: int) -> Any:
    """The same run with pictures of another size."""
    return dataclasses.replace(cfg, video=dataclasses.replace(cfg.video, height=height, width=width))
