"""What the sections of a configuration are made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _named(path: str) -> str:
    if not path.strip():
        raise ValueError("%FIELD% is an empty text: name a file or a directory, or remove the field.")
    return path


FilePath = Annotated[str, AfterValidator(_named)]
Selection = str | tuple[str, ...]


class Section(BaseModel):
    """A section of the file: unknown fields and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
