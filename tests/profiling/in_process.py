"""A runner for the tests beside."""

from precaudit.running.worker import run


class InProcess:
    """A runner of `code` in this process."""

    def __init__(self, code):
        self.code = code

    def __call__(self, spec):
        return run(spec, self.code)

    def many(self, specs):
        return [self(spec) for spec in specs]
