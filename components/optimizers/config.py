"""Options of the built-in optimizers. Torch-free."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AdamW(BaseModel):
    """Adam with decoupled weight decay."""

    model_config = ConfigDict(extra="forbid")

    beta1: float = Field(0.9, ge=0, lt=1, description="memory of the gradient's mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="memory of the gradient's square")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.01, ge=0, description="decay of matrices, times the learning rate")


class Muon(BaseModel):
    """Orthogonalised momentum for hidden matrices, AdamW for the rest."""

    model_config = ConfigDict(extra="forbid")

    momentum: float = Field(0.95, ge=0, lt=1, description="memory of the gradient")
    iterations: int = Field(5, ge=1, le=10, description="Newton-Schulz iterations")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices, times the learning rate")
    exclude: tuple[str, ...] = Field(
        ("embedding", "head"), description="names of modules whose matrices are not hidden ones: AdamW trains them"
    )
    adamw: AdamW = Field(default_factory=lambda: AdamW.model_validate({}), description="options of the AdamW beside it")
