"""The one exception that is written for users."""


class UserError(Exception):
    """Wrong input or a missing tool: one sentence that names the file, the value and the remedy.

    The command line prints the sentence to standard error and exits with status 1. Any other
    exception is a defect of this package and keeps its traceback.
    """
