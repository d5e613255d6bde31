"""Result files: one Arrow schema, one Parquet fragment per cell, one ``run.json`` per run.

A run is ``results/<suite>/<run_id>/cells/<cell_id>.parquet``. Beside ``cells/`` are ``blocks/``, ``libraries/``,
``logs/``, ``references/`` and ``run.json``, in a run of many cells ``rows.copy`` with their rows, and ``claims/`` while
processes work in it. No other room of the package reads or writes these files.
"""

from curvbench.store.claims import Claims, alone, in_use
from curvbench.store.copies import keep as keep_copy
from curvbench.store.duplicates import differences
from curvbench.store.files import Stamp, cell_file, stamp
from curvbench.store.folders import (
    check_writable,
    drop_large_references,
    locked,
    new_run,
    read_blocks,
    read_jobs,
    read_libraries,
    read_log,
    read_run,
    refuse_unwritable,
    resolve,
    runs,
    runs_below,
    share_cell,
    shorten_log,
    write_blocks,
    write_jobs,
    write_libraries,
    write_run,
)
from curvbench.store.fragments import NewerSchema, read_cell, write_cell, write_rows
from curvbench.store.rows import (
    cell_statuses,
    fragment_status,
    load,
    load_run,
    reason,
    state,
    statuses,
    table_status,
)
from curvbench.store.schema import SCHEMA, SCHEMA_VERSION, WITHOUT_SAMPLES, Context, rows_to_table

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "WITHOUT_SAMPLES",
    "Claims",
    "Context",
    "NewerSchema",
    "Stamp",
    "alone",
    "cell_file",
    "cell_statuses",
    "check_writable",
    "differences",
    "drop_large_references",
    "fragment_status",
    "in_use",
    "keep_copy",
    "load",
    "load_run",
    "locked",
    "new_run",
    "read_blocks",
    "read_cell",
    "read_jobs",
    "read_libraries",
    "read_log",
    "read_run",
    "reason",
    "refuse_unwritable",
    "resolve",
    "rows_to_table",
    "runs",
    "runs_below",
    "share_cell",
    "shorten_log",
    "stamp",
    "state",
    "statuses",
    "table_status",
    "write_blocks",
    "write_cell",
    "write_jobs",
    "write_libraries",
    "write_rows",
    "write_run",
]
