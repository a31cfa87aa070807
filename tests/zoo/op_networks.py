"""One table of the tiny networks that are made for one operation each; see `op_case.OpCase`."""

from __future__ import annotations

import op_attention
import op_more
import op_moves
import op_norms
import op_pointwise
import op_recurrent
import op_reductions
import op_weights
from op_case import OpCase
from op_generated import generated, plain_name
from op_merged import MERGED
from op_refused import REFUSED, UNSURE

_WRITTEN = (
    op_weights.OPS,
    op_recurrent.OPS,
    op_attention.OPS,
    op_norms.OPS,
    op_pointwise.OPS,
    op_reductions.OPS,
    op_moves.OPS,
    op_more.OPS,
)
_TABLES = (*_WRITTEN, generated({plain_name(case.op) for table in _WRITTEN for case in table.values()}))
OPS: dict[str, OpCase] = {name: case for table in _TABLES for name, case in table.items()}
assert len(OPS) == sum(map(len, _TABLES)), "two networks have one name"

__all__ = ["MERGED", "OPS", "REFUSED", "UNSURE", "OpCase"]
