"""``vbackup schema``: print the JSON Schema of a document, or list all of them."""

from __future__ import annotations

import argparse
import json

from vbackup.api import find_schema, known_schemas, load_schema, schema_title
from vbackup.cli import output
from vbackup.cli.context import Context
from vbackup.errors import Status


def run(options: argparse.Namespace, context: Context) -> int:
    """Print the schema, which is JSON with and without ``--json``, or the list. Raises UsageError."""
    if options.name is not None:
        print(json.dumps(load_schema(find_schema(options.name)), indent=2, ensure_ascii=False))
        return Status.DONE
    listed = [(name, schema_title(name)) for name in known_schemas()]
    if context.as_json:
        document = {"schemas": [{"name": name, "title": title} for name, title in listed]}
        context.print_document("vbackup.schemas/1", document)
    else:
        output.table(("SCHEMA", "DOCUMENT"), listed)
    return Status.DONE
