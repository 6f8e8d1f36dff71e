from pydantic import BaseModel, Field


class Config(BaseModel, extra="forbid"):
    grid: int = Field(8, ge=1, description="patches per side")
    dim: int = Field(64, ge=1, description="width of a feature")
