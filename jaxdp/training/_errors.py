"""What a user can put right, as against a fault of the program."""


class UserError(Exception):
    """One sentence that names the field, the file or the argument, and the fix; shown without a traceback."""
