"""The one root of trimtab's errors. Every message states the fact first, then what to do."""


class TrimtabError(Exception):
    """Something trimtab can name went wrong; the text says what to do about it."""


class ContractError(TrimtabError):
    """A contract or another file a user wrote cannot be used; names the file, line and key."""


class ConflictError(TrimtabError):
    """Another owner acted first; reload and decide again."""


class NotFoundError(TrimtabError):
    """What was asked for does not exist; the text names where to list what does."""
