"""The eight published models as data, each number with its source.

Holds no code that computes and no weights. `get_spec` is how everybody else asks for a model.

Where the numbers come from:
- "Table I", "Table II": Gupta et al., DeepRecSys, ISCA 2020. The three DLRM rows agree with a
  second publication; the other rows and the targets are recalled, not checked against the PDF.
- "authors' code": the configuration files of harvard-acc/DeepRecSys, read. They fill what Table I
  leaves open in the variant "paper", and are the variant "authors-code" whole.
- "assumption": neither says; chosen here, with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from deeprecsys.core import SLA, UserError
from deeprecsys.models.spec import (
    DIENSpec,
    DINSpec,
    DLRMSpec,
    Feature,
    ModelSpec,
    NCFSpec,
    Table,
    WideAndDeepSpec,
)

PAPER, AUTHORS = VARIANTS = ("paper", "authors-code")

RECALLED = "Table I (recalled, not checked against the PDF)"
TABLE_I = "Table I (agrees with a second publication)"
CODE = "authors' code (configuration file)"
TARGET = ("target", "Table II (recalled, not checked against the PDF)")


def _p95(milliseconds: float) -> SLA:
    return SLA(milliseconds / 1e3, 95.0)


def _one_table_each(tables: Sequence[Table], lookups: int = 1) -> tuple[Feature, ...]:
    return tuple(Feature(table.name, (table.name,), lookups) for table in tables)


def _numbered(count: int, rows: int, name: str = "table", start: int = 0) -> tuple[Table, ...]:
    return tuple(Table(f"{name}_{i}", rows) for i in range(start, start + count))


def _ncf(variant: str) -> NCFSpec:
    authors = variant == AUTHORS
    return NCFSpec(
        name="ncf",
        variant=variant,
        target=_p95(5),
        width=64,
        # Their code multiplies the first two tables and concatenates the last two; NeuMF needs
        # user and item in both branches, so the same four sizes are read as pairs.
        tables=(
            Table("gmf_user", 140_000),
            Table("mlp_user", 140_000),
            Table("gmf_item", 28_000),
            Table("mlp_item", 28_000),
        ),
        features=(
            Feature("user", ("gmf_user", "mlp_user")),
            Feature("item", ("gmf_item", "mlp_item")),
        ),
        # Theirs ends 64 wide without a score: the 1 is added (assumption).
        mlp=(256, 256, 128, 64) if authors else (256, 256, 128),
        predict=(64, 1) if authors else (1,),
        operators=("embedding", "product", "FC"),
        sources=(
            ("architecture", "NeuMF, arXiv 1708.05031, figure 3"),
            ("mlp", CODE if authors else RECALLED),
            ("tables, width", CODE),
            ("roles of the tables", "assumption: pairs for user and for item"),
            TARGET,
        ),
    )


def _wnd(variant: str) -> WideAndDeepSpec:
    tables = _numbered(27, 1_000_000)
    return WideAndDeepSpec(
        name="wnd",
        variant=variant,
        target=_p95(25),
        width=32,
        dense=512,
        tables=tables,
        features=_one_table_each(tables),
        shared=(1024, 512, 256),
        tower=(1,),
        wide=variant == PAPER,  # their code has the deep part only
        operators=("embedding", "concat", "FC"),
        sources=(
            ("architecture", "Wide & Deep, arXiv 1606.07792, figure 1"),
            ("wide part", "assumption: the dense inputs stand in for cross-product features"),
            ("predict FC", RECALLED),
            ("tables, width, dense", CODE),
            TARGET,
        ),
    )


def _mt_wnd(variant: str) -> WideAndDeepSpec:
    authors = variant == AUTHORS
    tables = _numbered(41, 500_000) + _numbered(2, 5_000_000, start=41)
    return WideAndDeepSpec(
        name="mt-wnd",
        variant=variant,
        target=_p95(25),
        width=32,
        dense=512,
        tables=tables,
        features=_one_table_each(tables),
        shared=(1024, 512) if authors else (),
        # Their 512-256-128 begins with the shared part's output; a score a task is added.
        tower=(256, 128, 1) if authors else (1024, 512, 256, 1),
        towers=5,
        operators=("embedding", "concat", "FC"),
        sources=(
            ("architecture", "Table I: N x (1024-512-256); multi-task ranking, RecSys 2019"),
            ("tower", CODE if authors else RECALLED),
            ("tasks", "assumption: 5 (Table I says N; their code runs 1 unless told)"),
            ("tables, width, dense", CODE),
            TARGET,
        ),
    )


def _dlrm(
    name: str,
    variant: str,
    *,
    target_ms: float,
    tables: tuple[int, int],
    width: int,
    lookups: int,
    bottom: tuple[int, ...],
    top: tuple[int, ...],
) -> DLRMSpec:
    """`bottom` as printed in Table I: the width of the dense input comes first."""
    authors = variant == AUTHORS
    numbered = _numbered(*tables)
    return DLRMSpec(
        name=name,
        variant=variant,
        target=_p95(target_ms),
        width=width,
        dense=bottom[0],
        of_user=("dense",),
        tables=numbered,
        features=_one_table_each(numbered, lookups),
        bottom=bottom[1:],
        top=top,
        interaction="cat" if authors else "dot",
        operators=("FC", "embedding sum", "concat" if authors else "dot interaction"),
        sources=(
            ("architecture", "DLRM, arXiv 1906.00091; classes RMC1-3, arXiv 1906.03109"),
            ("interaction", CODE if authors else "DLRM, arXiv 1906.00091"),
            ("dense FC, predict FC, look-ups", CODE if authors else TABLE_I),
            ("number and rows of tables", CODE),
            ("width", CODE if authors else "the dense FC's last width: the dot product needs it"),
            TARGET,
        ),
    )


def _rmc1(variant: str) -> DLRMSpec:
    return _dlrm(
        "dlrm-rmc1",
        variant,
        target_ms=100,
        tables=(8, 4_000_000),
        width=32,
        lookups=80,
        bottom=(128, 64, 32) if variant == AUTHORS else (256, 128, 32),
        top=(256, 64, 1),
    )


def _rmc2(variant: str) -> DLRMSpec:
    authors = variant == AUTHORS
    return _dlrm(
        "dlrm-rmc2",
        variant,
        target_ms=400,
        tables=(32, 500_000),
        width=64 if authors else 32,
        lookups=120 if authors else 80,
        bottom=(256, 128, 64) if authors else (256, 128, 32),
        top=(128, 64, 1) if authors else (512, 128, 1),
    )


def _rmc3(variant: str) -> DLRMSpec:
    authors = variant == AUTHORS
    return _dlrm(
        "dlrm-rmc3",
        variant,
        target_ms=100,
        tables=(10, 2_000_000),
        width=32,
        lookups=20,
        bottom=(2560, 1024, 256, 32) if authors else (2560, 512, 32),
        top=(512, 256, 1) if authors else (512, 128, 1),
    )


def _din(variant: str) -> DINSpec:
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    if variant == AUTHORS:
        # In their code's order: user, behaviours, candidate, context. Theirs gives each of the
        # 250 behaviours a table of its own; one table serves them here (assumption).
        tables = (
            Table("user", 1_000_000),
            Table("behaviour", 100_000),
            Table("candidate", 10_000_000),
            Table("context", 10_000_000),
        )
        features = (
            Feature("user", ("user",)),
            Feature("behaviour_items", ("behaviour",), 250),
            Feature("candidate_item", ("candidate",)),
            Feature("context", ("context",)),
        )
    else:
        # Four tables of their sizes, read as what DIN needs; 2.7 GB in all.
        tables = (
            Table("user", 1_000_000),
            Table("item", 10_000_000),
            Table("category", 10_000_000),
            Table("context", 100_000),
        )
        features = (
            Feature("user", ("user",)),
            Feature("behaviour_items", ("item",), 250),
            Feature("behaviour_categories", ("category",), 250),
            Feature("candidate_item", ("item",)),
            Feature("candidate_category", ("category",)),
            Feature("context", ("context",)),
        )
    behaviours = tuple(f.name for f in features if f.name.startswith("behaviour_"))
    return DINSpec(
        name="din",
        variant=variant,
        target=_p95(100),
        width=32,
        tables=tables,
        features=features,
        of_user=("user", *behaviours),
        behaviours=behaviours,
        candidate=tuple(f.name for f in features if f.name.startswith("candidate_")),
        others=("user", "context"),
        attention=1 if variant == AUTHORS else 36,
        top=(200, 80, 2),
        operators=("embedding", "attention", "FC"),
        sources=(
            ("architecture", "DIN, arXiv 1706.06978, figure 2"),
            ("attention", CODE if variant == AUTHORS else "DIN, arXiv 1706.06978: 36 hidden"),
            ("predict FC", RECALLED),
            ("behaviours", CODE + "; Table I says hundreds"),
            ("tables, width", CODE),
            ("roles of the tables", "assumption: their sizes, dealt to DIN's features"),
            TARGET,
        ),
    )


def _dien(variant: str) -> DIENSpec:
    if variant == AUTHORS:
        # In their code's order: user, 40 behaviours of one table each, candidate, context.
        steps = _numbered(40, 500_000, "behaviour")
        big = (Table("candidate", 5_000_000), Table("context", 5_000_000))
        tables = (Table("user", 500_000), *steps, *big)
        features = _one_table_each(tables)
        behaviours = tuple(table.name for table in steps)
        candidate: tuple[str, ...] = ("candidate",)
        others: tuple[str, ...] = ("user", "context")
    else:
        context = (Table("user", 500_000), *_numbered(40, 500_000, "context"))
        tables = (Table("item", 5_000_000), Table("category", 5_000_000), *context)
        behaviours = ("behaviour_items", "behaviour_categories")
        candidate = ("candidate_item", "candidate_category")
        others = tuple(table.name for table in context)
        features = (
            Feature("behaviour_items", ("item",), 50),
            Feature("behaviour_categories", ("category",), 50),
            Feature("candidate_item", ("item",)),
            Feature("candidate_category", ("category",)),
            *_one_table_each(context),
        )
    return DIENSpec(
        name="dien",
        variant=variant,
        target=_p95(35),
        width=32,
        tables=tables,
        features=features,
        of_user=("user", *behaviours),
        behaviours=behaviours,
        candidate=candidate,
        others=others,
        table_a_step=variant == AUTHORS,
        hidden=64,
        top=(200, 80, 2),
        operators=("embedding", "GRU", "attention", "AUGRU", "FC"),
        sources=(
            ("architecture", "DIEN, arXiv 1809.03672, figure 1"),
            ("predict FC", RECALLED),
            ("behaviours", CODE if variant == AUTHORS else "assumption: 50 (Table I says tens)"),
            ("tables, width", CODE),
            ("hidden", "authors' code (default of its command line)"),
            ("roles of the tables", CODE if variant == AUTHORS else "assumption"),
            TARGET,
        ),
    )


_BUILDERS = {
    "ncf": _ncf,
    "wnd": _wnd,
    "mt-wnd": _mt_wnd,
    "dlrm-rmc1": _rmc1,
    "dlrm-rmc2": _rmc2,
    "dlrm-rmc3": _rmc3,
    "din": _din,
    "dien": _dien,
}

SPECS: dict[tuple[str, str], ModelSpec] = {
    (name, variant): build(variant) for name, build in _BUILDERS.items() for variant in VARIANTS
}
NAMES = tuple(_BUILDERS)


def get_spec(name: str, variant: str = PAPER) -> ModelSpec:
    """The specification of a model; UserError naming the known ones if there is none."""
    _known("model", name, NAMES)
    _known("variant", variant, VARIANTS)
    return SPECS[name, variant]


def _known(what: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"unknown {what} {name!r}; {hint}known: {', '.join(known)}")
