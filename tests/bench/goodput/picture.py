"""The picture of a race: training time lost against how often kills come."""

from __future__ import annotations

from pathlib import Path

from tests.bench.goodput.costs import replay
from tests.bench.goodput.table import RATES, SEED, Report, costs_of, ran

DOTS_PER_INCH = 120


def draw(report: Report, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for row in ran(report):
        costs = costs_of(row)
        lost = [100 * (1 - replay(costs, between, SEED)) for between in RATES.values()]
        ours = row["name"] == "walrecover"
        axes.plot(
            list(RATES.values()),
            lost,
            marker="o",
            linewidth=3 if ours else 1.2,
            zorder=3 if ours else 2,
            label=row["name"],
        )
    axes.set(xscale="log", yscale="log", xlabel="a kill every", ylabel="training time lost")
    axes.set_xticks(list(RATES.values()), list(RATES), rotation=30, ha="right")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:g}%")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    kills = len(report["seconds_before_each_kill"])
    axes.set_title(f"Replayed from {kills} measured kills of each; lower is better")
    axes.legend()
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)
