"""Contracts from files: the shell around the pure parser."""

from pathlib import Path

from trimtab.contracts.model import Contract
from trimtab.contracts.parse import FILE_BYTES_MAX, parse_contracts
from trimtab.errors import ContractError, NotFoundError


def load_contracts(path: Path | str) -> list[Contract]:
    """Return the contract of a file, or those of a folder's `*.toml` over its `defaults.toml`.

    A single file, too, lies over the `defaults.toml` beside it.
    Raises NotFoundError when there is none, ContractError with all problems of all files.
    """
    path = Path(path)
    if path.is_dir():
        paths = sorted(path.glob("*.toml"))
        if not [file for file in paths if file.name != "defaults.toml"]:
            raise NotFoundError(f"{path} holds no contract. Put NAME.toml there.")
    elif path.is_file():
        beside = path.with_name("defaults.toml")
        paths = [path, beside] if beside.is_file() and beside != path else [path]
    else:
        raise NotFoundError(f"{path} does not exist. Name a TOML file or a folder of them.")
    return parse_contracts({str(file): _text(file) for file in paths})


def _text(path: Path) -> str:
    if path.stat().st_size > 4 * FILE_BYTES_MAX:
        raise ContractError(f"{path}:1: is too large for a contract ({path.stat().st_size} bytes).")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}:1: is not UTF-8 text ({error.reason}).") from error
