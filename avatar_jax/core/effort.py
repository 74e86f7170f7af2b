"""The part of the configuration schema that says how something is trained: at which rates, on how many devices."""

import dataclasses


@dataclasses.dataclass(unsafe_hash=True)
class OptimConfig:
    """Muon on matrices and AdamW on the rest, warm-up and cosine decay, a moving average of the weights."""

    batch: int
    steps: int
    rate: float  # of Muon's orthogonalised steps
    vector_rate: float  # of AdamW, for vectors and small tables
    warmup: int
    beta2: float
    decay: float
    clip: float
    ema: float
    log_every: int
    save_every: int
    minutes: float  # stop training after this much wall time (0: never)
    accumulate: int = 1  # pieces of a batch that are gone through one after the other, their gradients averaged
    spike: float = 10.0  # times the usual loss from which one is a spike, and the run goes back (0: only if not finite)


@dataclasses.dataclass(unsafe_hash=True)
class TrainMesh:
    """The devices of a training run: data x fsdp x tensor."""

    data: int = 1  # that share a batch and hold the same weights
    fsdp: int = 1  # that share a batch too, and each weight with its optimiser state between them
    tensor: int = 1  # that split each layer's heads and inner width

    @property
    def devices(self) -> int:
        """Devices that train."""
        return self.data * self.fsdp * self.tensor


@dataclasses.dataclass(unsafe_hash=True)
class DistillConfig:
    """Stage two: a few-step student of a teacher (live_avatar.md section 7.2 and 7.3)."""

    student: OptimConfig
    fake: OptimConfig
    rank: int  # of the adapters that student and fake score are on the teacher's weights; 0: all weights move
    alpha: float  # their scale is alpha / rank
    every: int  # the student moves once in so many steps, the fake score in each
    blocks: int  # of a rollout
    guidance: float  # of the teacher, u + g (c - u)
    shift: float  # of the levels at which the two scores compare
    anchored: float  # share of rollouts whose first block starts from data: keeps the motion alive
    patience: int = 0  # steps without a better look at watched clips, after which it ends with the best (0: never)
    follow: OptimConfig | None = None  # of the student before, led through the states of its stream; None: it is not


@dataclasses.dataclass(unsafe_hash=True)
class FinetuneConfig:
    """One person: adapters learned on the stage-one weights from a few minutes of video."""

    optim: OptimConfig
    rank: int  # of the adapters
    alpha: float  # their scale is alpha / rank
    held_out: float  # share of the clips, the last ones, that nothing is learned from
