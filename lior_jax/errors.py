"""The one exception whose message is meant for the person at the terminal."""


class UserError(Exception):
    """Bad input or a bad environment, described in one sentence: what is wrong and how to fix it.

    The command-line programs print the sentence and exit with status 2, without a traceback.
    """
