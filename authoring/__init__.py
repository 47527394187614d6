"""For authors of plugins: `latentwire new-plugin` and `latentwire plugins check`; imports none of torch."""


class AuthoringError(Exception):
    """What was asked cannot be done; says in one line why, and what to do."""
