"""The command beside the lab: list, run, book, data, release, doctor, publish."""

import sys

# nbformat loads jsonschema, and that a grammar of international addresses, which takes two seconds and checks nothing
# in a notebook. Without the grammar jsonschema does without the check.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
