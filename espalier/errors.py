"""The one exception that users meet: every bad input ends in one sentence that says what is wrong and what to do."""


class EspalierError(ValueError):
    """Bad input, or a target that cannot be met. The message is one sentence, fit to be shown without a traceback."""
