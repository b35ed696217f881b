"""JSON that a user or a server gives: text -> values, or an error of one line whatever the text holds."""

import json
from typing import Any

BOM = "\ufeff"


class JsonError(ValueError):
    """A text that is not JSON, or that cannot be used; the message says why, without the place.

    Args:
        problem: what is wrong.
        line: where, counted from 1; None if it is not known.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(problem)


def parse_json(content: bytes) -> Any:
    """Return the values of a JSON text in UTF-8; a byte order mark at its beginning is accepted.

    Raises:
        JsonError: this is no UTF-8 or no JSON, it is nested too deeply, a number has thousands of digits, or
            a text holds half of a surrogate pair, which UTF-8 cannot encode.
    """
    try:
        values = json.loads(content.decode().removeprefix(BOM))
        json.dumps(values, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at column {error.colno}", error.lineno) from None
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 text, at byte {error.start}") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise JsonError(f"a text with {half}, half of a surrogate pair; remove it") from None
    except RecursionError:
        raise JsonError("not usable JSON: its brackets are nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise JsonError(f"not usable JSON: {str(error).partition(';')[0]}") from None
    return values
