"""A task of one's own: masked diffusion of byte strings (2406.07524), with its own process, source, network and judge.

dit-video train --config=masked_text.py --workdir=runs/words
dit-video sample --config=masked_text.py --workdir=runs/words --out=words.jsonl
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

# isort: off
from dit_video import (
    AdamW, Ancestral, Batch, CaptionBytes, ClipTransform, Corrupted, Data, Evaluator, Examples, Experiment, Function,
    Record, Report, Schedule, SourceInfo, Split, Task, Text, clip_keys,
)  # fmt: skip

# isort: on
from dit_video.nn.linear import linear
from dit_video.tasks import diffuse
from dit_video.tasks.task import GENERATE

WORDS, LENGTH, MASK, WIDTH = ("red", "green", "blue", "white"), 8, 255, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Examples):
    num_frames = None  # none is a video

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return Record(key=str(index), caption=WORDS[index % len(WORDS)], fps=1.0)

    def open(self, split):
        return self

    def info(self):
        of_each = {"num_records": dict.fromkeys(Split, 64), "split_digest": dict.fromkeys(Split, "1")}
        return SourceInfo(class_names=(), digest="1", **of_each)


class Masked:  # the process: of x, uint8 [B L], each byte is masked with probability t
    def prior(self, keys, shape):
        return jnp.full((len(keys), *shape), MASK, jnp.uint8)

    def corrupt(self, rng, x_0, known=None):
        t = jax.random.uniform(rng, (len(x_0), 1))
        masked = jax.random.uniform(jax.random.fold_in(rng, 1), x_0.shape) < t
        return Corrupted(jnp.where(masked, jnp.uint8(MASK), x_0), t, target=x_0, weight=masked)

    def loss(self, logits, corrupted, known=None):
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), corrupted.target[..., None].astype(int), -1)[..., 0]
        return -jnp.mean(right * corrupted.weight), {}

    def step(self, logits, x_t, t, s, keys):
        drawn = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.uint8)
        lots = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), x_t.shape[1:]))(keys)
        return jnp.where((x_t == MASK) & (lots < (t - s) / t), drawn, x_t)

    def time_grid(self, num_steps, num_positions, spacing):
        return jnp.linspace(1.0, 0.0, num_steps + 1)


class Mixer(nnx.Module):
    def __init__(self, rngs):
        of = {"rngs": rngs, "dtype": jnp.dtype("float32")}
        self.mix = linear(LENGTH * 256, WIDTH, ("embed", "mlp"), **of)
        self.out = linear(WIDTH, LENGTH * 256, ("mlp", "embed"), **of)

    def __call__(self, x):
        return self.out(nnx.gelu(self.mix(jax.nn.one_hot(x, 256).reshape(len(x), -1)))).reshape(*x.shape, 256)


class Spelt(Text):
    @classmethod
    def of_rows(cls, rows, columns, fps):
        return cls(tuple(bytes(row[1:]).split(b"\0")[0].decode(errors="replace") for row in rows))


def generate(model, frozen, batch, keys, shape):
    x_1 = Masked().prior(keys, (LENGTH,))
    return diffuse.sample(Masked(), Ancestral(num_steps=8), lambda x, t, cond: model(x), x_1, keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spelling(Evaluator):
    def __call__(self, subject, data, seed):
        texts = subject.show(GENERATE, subject(GENERATE, Batch(), clip_keys(seed, range(32))), 1, 1.0).lines()
        return Report(scalars={"words": sum(text in WORDS for text in texts) / 32})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedText(Task):
    def init(self, rng):
        return Mixer(nnx.Rngs(rng))

    def loss(self, model, frozen, batch, rng, step):
        return diffuse.training_loss(Masked(), lambda x, t: model(x), jnp.asarray(batch.signals["caption"]), rng)

    def functions(self):
        return {GENERATE: Function(generate, Spelt)}

    def judges(self):
        return {"spelling": Spelling(every=1)}


def get_config(arg=""):
    signals, clips = {"caption": CaptionBytes(num_bytes=LENGTH)}, ClipTransform(num_frames=1, size=(1, 1))
    data = Data(source=Words(), clips=clips, batch_size=16, signals=signals)
    return Experiment(task=MaskedText(), data=data, optimizer=AdamW(), schedule=Schedule(num_steps=200))
