from pydantic import BaseModel, Field


class Config(BaseModel, extra="forbid"):
    size: int = Field(256, ge=1, description="samples in each split")
