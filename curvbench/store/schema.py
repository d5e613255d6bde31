"""The columns of results: one Arrow schema, and the rows of a cell in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from curvbench.spec import FLOP_MODEL, METRICS, SURROGATE, Cell, Metric, Row, Status
from curvbench.words import near_misses

SCHEMA_VERSION = 3

_COLUMNS: tuple[tuple[str, pa.DataType, str, str], ...] = (
    ("schema_version", pa.int64(), "1", "version of this schema"),
    ("run_id", pa.string(), "", "the run in which the cell was measured"),
    ("suite", pa.string(), "", "name of the suite"),
    ("cell_id", pa.string(), "", "hash over everything that decides the cell's rows"),
    ("problem", pa.string(), "", "name of the problem"),
    ("problem_args", pa.string(), "", "its hyperparameters that differ from the defaults, key=value,..."),
    ("probe", pa.string(), "", "name of the probe"),
    ("probe_args", pa.string(), "", "its hyperparameters that differ from the defaults, key=value,..."),
    ("seed", pa.int64(), "1", "seed of the snapshot and the samples"),
    ("status", pa.string(), "", f"one of {', '.join(Status)}"),
    ("reason", pa.string(), "", "why there is no value; uncounted operations; what a coverage leaves out"),
    ("metric", pa.string(), "", "name of the metric; empty where the cell did not succeed"),
    ("scope", pa.string(), "", "network, layer blocks, a layer's name, a phase, or a damping as damping=1e-03"),
    ("epoch", pa.int64(), "1", "epochs trained before the measurement"),
    ("step", pa.int64(), "1", "steps trained before the measurement"),
    ("unit", pa.string(), "", "unit of value and samples"),
    ("better", pa.string(), "", "lower, higher or empty: which way is better"),
    ("value", pa.float64(), "column unit", "the measurement"),
    ("samples", pa.list_(pa.float64()), "column unit", "raw repetitions behind the value"),
    ("started_at", pa.timestamp("us", "UTC"), "UTC", "when the cell was started"),
    ("git_sha", pa.string(), "", "commit of the suite's repository; null outside git"),
    ("git_dirty", pa.bool_(), "", "whether Python files there differed from it"),
    ("curvbench_version", pa.string(), "", "version of curvbench"),
    ("curvbench_sha", pa.string(), "", "commit of curvbench; null outside git"),
    ("libraries", pa.string(), "", "names what the cell had loaded, in the run's folder of this name"),
    ("torch_version", pa.string(), "", "version of torch"),
    ("device", pa.string(), "", "cpu, cuda or cuda:i"),
    ("device_name", pa.string(), "", "model of the processor"),
    ("dtype", pa.string(), "", "precision of the measurement"),
    ("threads", pa.int64(), "1", "threads of torch"),
    ("parameters", pa.string(), "", "what is covered: all trainable parameters, or weights with their biases"),
    ("flop_model", pa.string(), "", "how floating-point operations are counted"),
    ("method", pa.string(), "", "how the value was measured; begins with surrogate where it stands in for a paper's"),
)
SCHEMA = pa.schema(
    [pa.field(name, kind, metadata={"unit": unit, "description": text}) for name, kind, unit, text in _COLUMNS],
    metadata={"curvbench_schema_version": str(SCHEMA_VERSION)},
)
# The schema of a fragment has no descriptions, because they would be a third of its bytes and slow its reading.
LEAN = pa.schema(
    [pa.field(n, kind, metadata={"unit": unit} if unit else None) for n, kind, unit, _ in _COLUMNS], SCHEMA.metadata
)
EARLIER: Mapping[str, str] = {"parameters": "weights"}  # what rows mean that were written before the column
CELL = ("suite", "run_id", "cell_id")  # together they name a cell of one run
WITHOUT_SAMPLES = [name for name in SCHEMA.names if name != "samples"]


@dataclass(frozen=True)
class Context:
    """What the store adds to the rows of a cell: where and when it was measured, and what it had loaded.

    ``environment`` as ``identity.environment`` gives it, ``libraries`` as ``write_libraries``. None means unknown.
    """

    run_id: str
    cell_id: str
    started_at: datetime
    environment: Mapping[str, Any]
    libraries: str | None = None


def rows_to_table(cell: Cell, rows: Sequence[Row], context: Context) -> pa.Table:
    """Rows of one cell in ``SCHEMA``.

    Raises:
        ValueError: ``spec.METRICS`` does not have a metric of the rows.
    """
    common = _common(cell, context)
    measured = [common | _measured(row) for row in rows]
    if cell.training and cell.training.paced:  # a cell that failed tells by this that it was no training
        measured = [row | {"method": row["method"] or cell.training.arguments} for row in measured]
    if cell.surrogate:
        measured = [row | {"method": ", ".join(filter(None, [SURROGATE, row["method"]]))} for row in measured]
    return pa.Table.from_pylist(measured, schema=SCHEMA)


def _common(cell: Cell, context: Context) -> dict[str, Any]:
    columns = ("git_sha", "git_dirty", "torch_version", "device_name")
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run_id,
        "suite": cell.suite,
        "cell_id": context.cell_id,
        "problem": cell.problem.name,
        "problem_args": cell.problem.arguments,
        "probe": cell.probe.name,
        "probe_args": cell.probe.arguments,
        "seed": cell.seed,
        "started_at": context.started_at,
        "device": cell.device,
        "dtype": cell.dtype,
        "threads": cell.threads,
        "parameters": cell.parameters,
        **{name: context.environment[name] for name in columns},
        **{name: context.environment.get(name) for name in ("curvbench_version", "curvbench_sha")},
        "libraries": context.libraries,
    }


def _measured(row: Row) -> dict[str, Any]:
    metric = METRICS.get(row.metric, Metric("", "") if not row.metric else None)
    if metric is None:
        raise ValueError(f"unknown metric {row.metric!r}: {near_misses(row.metric, METRICS)}")
    return {
        "status": str(row.status),
        "reason": row.reason,
        "metric": row.metric,
        "scope": row.scope,
        "epoch": row.epoch,
        "step": row.step,
        "unit": metric.unit,
        "better": metric.better,
        "value": row.value,
        "samples": list(row.samples),
        "flop_model": FLOP_MODEL if row.metric.startswith("flops.") else "",
        "method": row.method,
    }
