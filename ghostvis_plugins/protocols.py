"""What a component of each kind has to be. One Protocol per kind, with shapes; torch only for type checkers.

Letters: ``I`` images, ``P`` positions an encoder returns for an image, ``N`` vectors a resampler leaves of
them, ``T`` tokens of a packed batch, ``D`` the width of the language model.

``build`` is called with the validated config and, by keyword, with what only the composition knows:

=============  ================================================================
kind           ``build(config, ...)``
=============  ================================================================
encoder        nothing more
resampler      ``in_dim: int, in_tokens: int``, and ``model_dim: int`` if it names it
projector      ``in_dim: int, out_dim: int``
backbone       ``vocab_size: int``
dataset        ``split: "train" | "validation" | "test"``
task           nothing more
engine         ``model: VLM, tokenizer: Tokenizer``
optimizer      ``groups: list[dict]`` (torch parameter groups, with ``lr`` and ``names``)
tracker        ``run_dir: Path``
stage          nothing more; the stage is then called with its context
rl, reward     nothing more
chat_command   nothing more
=============  ================================================================

Modules are built first and filled later: ``build`` must also work under ``torch.device("meta")``, where the
shape check of every run happens before any weight is allocated. ``init_weights`` fills a new module
(pretrained or random); a module that is loaded from a model directory never sees it. A module may keep its
options in an attribute ``config``, completed by what it learnt from a checkpoint: that is what a model directory
records, so that it needs the checkpoint no more.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    from .types import Completion, Conversation, EvalDoc, Generation, Length, Rollout, Sample, Score


@runtime_checkable
class Encoder(Protocol):
    """A vision encoder (``torch.nn.Module``). It owns its preprocessing."""

    image_size: tuple[int, int]  # height, width in pixels of what forward takes
    tokens: int  # P
    out_dim: int  # Dv

    def transform(self) -> Mapping[str, Any]:
        """The preprocessing as plain values (size, interpolation, mean, std, …); its hash travels with the model.

        ``resize: "fast"`` among them says that :meth:`preprocess` takes uint8 tensors ``[3, h, w]`` of RGB as well.
        """

    def preprocess(self, image: PIL.Image.Image) -> Tensor:
        """One RGB picture of any size → float32 pixels ``[3, H, W]``, on the CPU."""

    def init_weights(self) -> None:
        """Fill the parameters. Raises UnavailableError when pretrained weights cannot be reached."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels ``[I, 3, H, W]`` → features ``[I, P, Dv]``."""


@runtime_checkable
class Resampler(Protocol):
    """Turns P features of an image into N (``torch.nn.Module``)."""

    tokens: int  # N
    out_dim: int  # Dr

    def init_weights(self) -> None: ...

    def __call__(self, features: Tensor) -> Tensor:
        """Features ``[I, P, Dv]`` → ``[I, N, Dr]``."""


@runtime_checkable
class Projector(Protocol):
    """Maps the resampled features to the width of the language model (``torch.nn.Module``)."""

    out_dim: int  # D

    def init_weights(self) -> None: ...

    def __call__(self, features: Tensor) -> Tensor:
        """Features ``[I, N, Dr]`` → vectors ``[I, N, D]``."""


@runtime_checkable
class KVCache(Protocol):
    """Keys and values of the tokens already seen; created by the backbone, owned by the engine."""

    lengths: Tensor  # int64 [rows], on the CPU: tokens in each row

    def select(self, rows: Tensor, length: int) -> KVCache:
        """A new cache of the given rows ``[R]`` (dropped, repeated) with room for ``length`` tokens each."""


@runtime_checkable
class Backbone(Protocol):
    """A causal language model over packed documents (``torch.nn.Module``).

    It may also have ``nll(hidden, targets)``: hidden states ``[S, D]`` and ids ``[S]`` → their summed negative
    log-likelihood, a float32 scalar. Training then never holds all logits; without it they go through ``logits``.
    With an attribute ``activation_checkpointing``, which a run may set to True, it offers to keep less. A module of
    any component may name methods that training compiles on a GPU in a class attribute ``compiles``: functions of
    tensors whose shapes seldom change.
    """

    dim: int  # D
    vocab_size: int  # rows of the output; at least what `build` was asked for
    max_positions: int
    n_layers: int

    def init_weights(self) -> None: ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids ``[T]`` → vectors ``[T, D]``."""

    def forward(
        self, x: Tensor, *, positions: Tensor, cu_seqlens: Tensor, cache: Any = None, rows: Tensor | None = None
    ) -> Tensor:
        """Vectors ``[T, D]`` → hidden states ``[T, D]``; no document attends to another.

        ``positions`` ``[T]`` int64 restart at 0 in each document; ``cu_seqlens`` ``[docs + 1]`` int32 on the
        CPU holds the document boundaries. With ``cache`` the documents are its rows: keys and values are
        appended to it, and a document attends to everything its row already holds. With ``rows`` ``[S]`` only
        their hidden states are returned, ``[S, D]``: the last layer need not compute the others.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[S, D]`` → float32 logits ``[S, vocab_size]``."""

    def new_cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for ``rows`` documents of at most ``length`` tokens."""


@runtime_checkable
class Dataset(Protocol):
    """Samples by index. Pure: the same index always gives the same sample, in every process and thread.

    Samples are read in several threads at a time. One that cannot be read raises DataError (or OSError, UnicodeError).
    A data set of files may have a method ``shard_of(index) -> str``, which names the file in the ledger of bad samples.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def length(self, index: int) -> Length:
        """Its cost, without decoding a picture or tokenising a text."""


@runtime_checkable
class Task(Protocol):
    """An evaluation: questions with known answers, and how an answer is judged."""

    name: str
    version: str
    metric: str  # the name of the headline figure, such as "exact_match"
    generation: Generation

    def docs(self) -> Sequence[EvalDoc]:
        """Every question, in a fixed order."""

    def score(self, doc: EvalDoc, answer: str) -> Mapping[str, float]:
        """Figures of one answer; must contain ``metric``, between 0 and 1. An empty answer scores 0."""


@runtime_checkable
class LikelihoodTask(Protocol):
    """An evaluation that asks nothing: how likely the model finds what the assistant says in known conversations.

    What a task component builds may be this instead of a :class:`Task`. A document's ``prompt`` is the whole
    conversation, answers included, and it has no choices. The evaluation itself measures: its headline figure is
    exp of the mean negative log-likelihood per token of the assistant's turns, over all documents.
    """

    name: str
    version: str
    metric: str  # "perplexity"
    measures: Literal["likelihood"]

    def docs(self) -> Sequence[EvalDoc]:
        """Every conversation, in a fixed order."""


@runtime_checkable
class Engine(Protocol):
    """Runs a model: answers, streams, likelihoods."""

    capabilities: frozenset[str]  # of {"images", "score", "stream", "batch", "abort"}

    def generate(self, prompts: Sequence[Conversation], generation: Generation) -> list[Completion]:
        """One completion per prompt, in order."""

    def stream(
        self, prompt: Conversation, generation: Generation, *, request_id: str = ""
    ) -> Generator[str, None, Completion]:
        """Pieces of the answer as they are decoded; whole characters only.

        The generator's return value is the finished completion: how many tokens, and why it ended.
        """

    def score(self, prompt: Conversation, continuations: Sequence[str]) -> list[Score]:
        """The likelihood of each continuation as the assistant's answer to ``prompt``."""

    def abort(self, request_id: str) -> None:
        """Stop a running stream at the next token. Unknown ids are ignored: it may just have ended."""


@runtime_checkable
class Optimizer(Protocol):
    """A ``torch.optim.Optimizer``. Each of several ranks builds one, of whole tensors that only this rank steps.

    It may say in ``cost(parameter) -> float`` how much work a step of a parameter is, by which they are dealt to the
    ranks; otherwise their sizes decide. FSDP gives it parts of tensors; with ``whole_tensors = True`` such a run is
    refused. With ``trains_bfloat16 = True`` it is given bfloat16 weights and sees to it that small updates are not
    lost; one with ``scale_gradients(factor)`` multiplies the gradients of its next step itself.
    """

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Tracker(Protocol):
    """Receives the metrics of a run, on rank 0."""

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None: ...

    def finish(self) -> None: ...


@runtime_checkable
class Stage(Protocol):
    """A stage of training: called once per process with its context, returns the model directory."""

    def __call__(self, context: Any) -> Any: ...


@runtime_checkable
class Reward(Protocol):
    """Judges rollouts in batch; ``None`` means unscorable, which leaves the rollout out of its group's baseline."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Mapping[str, float] | None]: ...


@runtime_checkable
class RLAlgorithm(Protocol):
    """A policy-gradient method: advantages and a per-token loss. Reduction belongs to the runner."""

    def advantages(self, rewards: Tensor, groups: Tensor) -> Tensor:
        """Rewards ``[N]`` and group numbers ``[N]`` → advantages ``[N]``. A group of one must not give NaN."""

    def token_loss(self, logp: Tensor, logp_old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities ``[N, T]`` → loss per token ``[N, T]``, unreduced, zero where ``mask`` is."""


@runtime_checkable
class ChatCommand(Protocol):
    """A slash command of the chat: gets the text after its name and the session, returns what to show."""

    def __call__(self, arguments: str, session: Any) -> str: ...
