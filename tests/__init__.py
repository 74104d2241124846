"""The tests; `labs` comes first, so that nbformat is loaded as quickly as in the command."""

import labs  # noqa: F401
