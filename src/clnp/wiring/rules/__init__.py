"""The rules: for each operation, what it does to labels.

One small function per kind of operation, one visible table, `RULES`. A rule is called with the tracer, the node and its
arguments, in which each tensor is a `Value`; it returns the labels of the result. It may make new units (`tracer.fresh`),
tie labels (`tracer.tie`, `tracer.only_along`) and say what a parameter's elements belong to (`tracer.weight`, `own`, `share`,
`direct`). An operation that is not in the table is merged: see `register` for how to add one.
"""

from __future__ import annotations

from clnp.errors import WiringError
from clnp.wiring.graph import MASK
from clnp.wiring.patterns import UNIT_NORM
from clnp.wiring.rules import mixing, norms, pointwise, weights
from clnp.wiring.rules.base import SAME, Kind, LabelRule, Labels, Rule, Value, tensors
from clnp.wiring.rules.mixing import unknown

__all__ = ["RULES", "Kind", "LabelRule", "Labels", "Rule", "Value", "register", "tensors", "unknown"]

_POINTWISE = (
    "relu relu6 gelu silu mish elu celu selu leaky_relu hardtanh hardswish hardsigmoid tanh sigmoid softplus log_sigmoid hardshrink "
    "softshrink threshold add.Tensor sub.Tensor rsub.Scalar rsub.Tensor mul.Tensor div.Tensor div.Tensor_mode add.Scalar sub.Scalar mul.Scalar "
    "div.Scalar neg exp exp2 expm1 log log2 log1p abs sqrt rsqrt reciprocal square sin cos tan atan asin acos sinh cosh erf erfc sign floor ceil round "
    "clamp clamp.Tensor clamp_min clamp_max pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar "
    "where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar masked_fill.Tensor maximum minimum "
    "addcmul addcdiv lerp.Scalar lerp.Tensor eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar "
    "logical_not logical_and logical_or bitwise_not bitwise_and.Tensor bitwise_or.Tensor __and__.Tensor __or__.Tensor nan_to_num isnan isinf isfinite "
    "floor_divide remainder.Scalar remainder.Tensor fmod.Scalar atan2 hypot"
)
_SHAPES = "view reshape flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims unsqueeze view_as reshape_as"
_MOVES = (
    "permute transpose.int movedim.int movedim.intlist swapaxes swapdims t numpy_T mT flip repeat tile repeat_interleave.self_int "
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_unshuffle unfold"
)
_POOLS = {
    1: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d.vec upsample_linear1d.vec",
    2: "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices upsample_nearest2d.vec upsample_bilinear2d.vec "
    "upsample_bicubic2d.vec _upsample_nearest_exact2d.vec _upsample_bilinear2d_aa.vec",
    3: "max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d upsample_nearest3d.vec upsample_trilinear3d.vec",
}
_REDUCTIONS = {
    1: "mean.dim sum.dim_IntList amax amin var.correction std.correction var.dim std.dim logsumexp prod.dim_int any.dim all.dim max.dim min.dim "
    "median.dim mean sum max min",
    2: "norm.ScalarOpt_dim linalg_vector_norm",
}
_ALONG = {1: "softmax.int log_softmax.int cumsum cumprod cummax cummin logcumsumexp sort argsort"}
_CONVOLUTIONS = (
    "conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding conv_transpose1d conv_transpose2d.input conv_transpose3d.input"
)
_LIKE = "zeros_like ones_like full_like"
_RAW = (
    "zeros ones full arange arange.start arange.start_step eye tril_indices triu_indices scalar_tensor new_zeros new_ones new_full linspace"
)


def _names(names: str) -> list[str]:
    return [f"aten.{name}" if "." in name else f"aten.{name}.default" for name in names.split()]


RULES: dict[str, Rule] = {
    **{op: Rule(pointwise.pointwise, "pointwise") for op in _names(_POINTWISE)},
    **{op: Rule(pointwise.dropout, "noise") for op in _names("dropout feature_dropout alpha_dropout feature_alpha_dropout")},
    **{op: Rule(pointwise.move, "shape") for op in _names(_SHAPES)},
    **{op: Rule(pointwise.move) for op in _names(_MOVES)},
    **{op: Rule(pointwise.move, "pad") for op in _names("pad constant_pad_nd")},
    **{op: Rule(pointwise.same) for op in SAME},
    **{op: Rule(pointwise.move, "expand") for op in _names("expand broadcast_to expand_as")},
    **{op: Rule(pointwise.move, "slice") for op in _names("slice.Tensor narrow")},
    **{op: Rule(pointwise.move, "select") for op in _names("select.int")},
    **{op: Rule(pointwise.move, "gather") for op in _names("roll channel_shuffle")},
    **{op: Rule(pointwise.index, "gather") for op in _names("index_select index.Tensor")},
    **{op: Rule(pointwise.concatenate, "cat") for op in _names("cat concat")},
    "aten.glu.default": Rule(pointwise.glu),
    "aten.pixel_shuffle.default": Rule(pointwise.shuffled_pixels),
    **{op: Rule(pointwise.complex_view) for op in _names("view_as_complex view_as_real")},
    "operator.getitem": Rule(pointwise.pick),
    **{op: Rule(mixing.spatial(n)) for n, names in _POOLS.items() for op in _names(names)},
    **{op: Rule(mixing.reduce(place)) for place, names in _REDUCTIONS.items() for op in _names(names)},
    **{op: Rule(mixing.along_dim(place)) for place, names in _ALONG.items() for op in _names(names)},
    "aten.im2col.default": Rule(mixing.columns_of_patches),
    "aten.einsum.default": Rule(mixing.einsum),
    **{op: Rule(mixing.matmul) for op in _names("matmul bmm mm")},
    "aten.scaled_dot_product_attention.default": Rule(mixing.attention, "attention"),
    **{op: Rule(mixing.raw) for op in _names(_RAW)},
    MASK: Rule(mixing.raw, "noise"),
    **{op: Rule(mixing.like) for op in _names(_LIKE)},
    "aten.linear.default": Rule(weights.linear, "weight"),
    **{op: Rule(weights.convolution, "weight") for op in _names(_CONVOLUTIONS)},
    "aten.embedding.default": Rule(weights.embedding, "own"),
    "aten.prelu.default": Rule(weights.prelu, "own"),
    "clnp.recurrent.default": Rule(weights.recurrent, "recurrent"),
    "aten.batch_norm.default": Rule(weights.batch_norm, "norm"),
    "aten.instance_norm.default": Rule(norms.instance_norm, "own"),
    "aten.group_norm.default": Rule(norms.group_norm, "over"),
    **{op: Rule(norms.over_units, "over") for op in [*_names("layer_norm rms_norm"), UNIT_NORM]},
}
"""What is done with labels, by operation. An operation that is not here is merged, or refused by name."""


def register(op: str, label: LabelRule, kind: Kind = "plain") -> None:
    """Add a rule for an operation of your own (`torch.library.custom_op`), so that its units are not merged.

    Args:
        op: its name in the captured graph, "mylib::myop" or "mylib.myop.default".
        label: called with the tracer, the node and the arguments; returns the labels of the result. `pointwise.pointwise` ties
            what meets at a position, `mixing.spatial(n)` keeps channels apart over n dimensions of positions.
        kind: how the operation is written for fewer units, see `Rule`.

    Raises:
        WiringError: the name is not one of an operation.

    >>> register("mylib::swirl", pointwise.pointwise, "pointwise")
    >>> RULES.pop("mylib.swirl.default").kind
    'pointwise'
    """
    name = op.replace("::", ".")
    if name.count(".") == 1:
        name += ".default"
    if name.count(".") != 2 or not callable(label):
        raise WiringError(f"cannot register a rule for '{op}': expected a name like 'mylib::myop' and a function.")
    RULES[name] = Rule(label, kind)
