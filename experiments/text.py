"""Text written in parallel and from left to right by one network: masked diffusion, blocks of it, autoregression.

    dit-video data text tinyshakespeare.txt --out data/shakespeare
    dit-video train --config=experiments/text.py:masked --workdir=runs/text_masked          or :block, :autoregressive
    dit-video evaluate run --workdir=runs/text_masked
    dit-video sample --workdir=runs/text_masked --infill "To be, or [40] the question." --show --out=infilled.jsonl
    python -m tools.bench_text --runs=runs/text_masked,runs/text_block --ar=runs/text_ar --judge=runs/text_judge

The judge is :autoregressive with another seed, --config.seed=1. All have the same 0.14M parameters, few enough for two
busy CPU cores; docs/text.md has what was measured: 800 steps of :masked and of
:autoregressive took 13 minutes each, two at once on cores that others used as well; bits per byte of held-out text 2.51
for :autoregressive, at most 3.33 for :masked.
"""

from dit_video import (
    EMA,
    Autoregressive,
    Blocks,
    Data,
    Decay,
    Experiment,
    Factorization,
    HeldOutError,
    LanguageModel,
    Masked,
    Muon,
    Samples,
    Schedule,
    Spread,
    TextSet,
    TextTransformerConfig,
    Unmasking,
)

KINDS: dict[str, Factorization] = {
    "masked": Masked(),
    "block": Blocks(size=16, times=(0.3, 0.8)),
    "autoregressive": Autoregressive(),
}


def get_config(arg: str = "masked") -> Experiment:
    """`masked`, `block` or `autoregressive`."""
    if arg not in KINDS:
        raise ValueError(f"experiments/text.py:{arg}: must be {', '.join(KINDS)}")
    return text(KINDS[arg])


def text(
    factorization: Factorization, *, directory: str = "data/shakespeare", length: int = 64, steps: int = 800
) -> Experiment:
    return Experiment(
        task=LanguageModel(
            network=TextTransformerConfig(hidden_size=64, depth=2, num_heads=2),
            factorization=factorization,
            sampler=Unmasking(order=Spread(tokens=4)),
        ),
        data=Data.of_text(TextSet(directory=directory, length=length, align=factorization.block_size), batch_size=32),
        optimizer=Muon(
            learning_rate=0.02, adam_learning_rate=3e-3, warmup_steps=50, decay=Decay.COSINE, weight_decay=0.1
        ),
        ema=EMA(decay=0.99),
        schedule=Schedule(num_steps=steps, log_every=50, save_every=400),
        evaluators={"held_out_error": HeldOutError(every=800, num_clips=256), "samples": Samples(every=800)},
    )
