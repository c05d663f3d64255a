"""What commands print for programs, held against the schema in the docs."""

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "json.schema.json").read_text(encoding="utf-8"))


def _no_literal(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def told(command: str, printed: str) -> Any:  # noqa: ANN401  any JSON value
    """The answer of a command such as `cluster check`, which has to be what the schema says."""
    answer = json.loads(printed, parse_constant=_no_literal)
    jsonschema.Draft202012Validator(SCHEMA).validate({command: answer})
    return answer
