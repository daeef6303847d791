"""What is told of a bug that must not end the work."""

from loguru import logger


def tell(where: str, bug: Exception) -> str:
    """Log a bug with its traceback; return what to say of it where that is no place for one."""
    name = type(bug).__name__
    logger.bind(event="error.internal").opt(exception=bug).error("{}: unexpected {}", where, name)
    return f"unexpected {name}, see the log; please report it"
