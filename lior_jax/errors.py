"""The one exception whose message is meant for the person at the terminal."""


class UserError(Exception):
    """Bad input or a bad environment, told in one sentence: what is wrong and how to mend it.

    The command-line programs print the sentence and exit with status 2, without a traceback.
    """
