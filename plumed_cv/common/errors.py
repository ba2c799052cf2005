"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input or a missing tool: one sentence naming the file, the value and the remedy.

    The command line prints the sentence to standard error and exits with status 1; everything
    else that is raised is a defect of this package and keeps its traceback.
    """
