"""The autoregressive run that judges text of other runs, as a value of an evaluator."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from dit_video.config.components import to_json
from dit_video.config.paths import expand
from dit_video.data.batch import Batch
from dit_video.data.record import TokenRow
from dit_video.data.text_tokens import TOKENS
from dit_video.storage import bucket
from dit_video.tasks.factorization import Autoregressive
from dit_video.tasks.keys import clip_keys
from dit_video.tasks.subject import Subject
from dit_video.tasks.task import GENERATE, LIKELIHOOD
from dit_video.weights.digest import weights_digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedJudge:
    """Which autoregressive run judges: one of another seed than the runs that it judges, on the same tokens.

    Attributes:
        run: its folder, or gs://bucket/run.
        digest: of its weights; None: whichever they are now, which cards say.
    """

    run: str
    digest: str | None = None

    PATHS: ClassVar[tuple[str, ...]] = ("run",)

    def __post_init__(self):
        expand(self)

    def check(self) -> None:
        """Raises ValueError where there is no such folder, before hours are spent until it judges."""
        if bucket.address(self.run) is None and not Path(self.run).is_dir():
            raise ValueError(f"judge.run={self.run}: is no folder of a run; train one of Autoregressive() text")

    def open(self, open_run: Callable[[str], Subject]) -> tuple[Subject, str]:
        """The run and the digest of its weights.

        Raises:
            ValueError: it is no autoregressive run of text, or its weights are not those of `digest`.
        """
        judge = open_run(self.run)
        if judge.description.get("factorization") != to_json(Autoregressive()):
            raise ValueError(
                f"judge.run={self.run}: is no run of Autoregressive() text, and only such a one gives the probability "
                "of a text and not a bound; name another"
            )
        digest = weights_digest(judge.params)
        if self.digest is not None and self.digest != digest:
            raise ValueError(
                f"judge.digest={self.digest[:12]}...: the weights in {self.run} are now {digest[:12]}..., so values "
                "would be on another scale: restore them, or leave the digest out"
            )
        return judge, digest


def judged_rows(
    judge: Subject, rows: Int[np.ndarray, "n L"], batch_size: int
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Bits and bytes of each row of tokens under an autoregressive run, each row as one document from its beginning."""
    size = judge.batch_size(batch_size)
    bits, num_bytes = [], []
    for first in range(0, len(rows), size):
        part = rows[first : first + size].astype(np.int32)
        whole = np.pad(part, ((0, size - len(part)), (0, 0)), mode="edge")  # one program for all batches
        batch = Batch(signals={TOKENS: TokenRow(whole, np.ones(whole.shape, np.int32))})
        found = judge(LIKELIHOOD, batch, clip_keys(0, range(size)))  # an exact likelihood does not use its keys
        bits.append(np.asarray(found["nats"], float)[: len(part)] / math.log(2))
        num_bytes.append(np.asarray(found["bytes"], float)[: len(part)])
    return np.concatenate(bits), np.concatenate(num_bytes)


def spelled(subject: Subject, rows: Int[np.ndarray, "n L"]) -> str:
    """The texts of rows of tokens, one a line."""
    medium = subject.show(GENERATE, rows, 1, 1.0)
    return "" if medium is None else "\n".join(medium.lines())


def check_same_tokens(subject: Subject, judge: Subject, rows: Int[np.ndarray, "n L"], run: str) -> None:
    """Raises ValueError where the judge reads other text in the tokens of `rows` than the run that wrote them."""
    sizes = [about.description.get("num_tokens") for about in (subject, judge)]
    if sizes[0] != sizes[1] or spelled(subject, rows) != spelled(judge, rows):
        raise ValueError(
            f"judge.run={run}: has another tokenizer ({sizes[1]} tokens) than the run that it judges ({sizes[0]} "
            "tokens); train the judge on the same set"
        )
