"""How do the plots of the report look? Each function turns stored numbers into one SVG drawing in the page's theme.

Drawings are made without a window system and hold no date, so equal values give equal bytes. Colours are placeholders
that become CSS variables, which is how one drawing serves the light and the dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808")
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {c: f"--series-{i}" for i, c in enumerate(SERIES)}

# From here on the points of a scatter plot become one picture instead of one SVG element each.
MOST_VECTOR_POINTS = 3000

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.transparent": True,
}


def scatter(predictions: Mapping[str, Any], label: str, share: bool) -> str:
    """Predicted against true values on held-out runs, with the diagonal on which a perfect prediction lies."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        true, predicted = predictions["true"], predictions["predicted"]
        groups = predictions.get("group") or [""] * len(true)
        low, high = min([*true, *predicted]), max([*true, *predicted])
        margin = 0.04 * (high - low or 1.0)
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        names = sorted(set(groups))
        for i, name in enumerate(names):
            chosen = [k for k, group in enumerate(groups) if group == name]
            axes.scatter(
                [true[k] for k in chosen],
                [predicted[k] for k in chosen],
                s=20,
                color=SERIES[i % len(SERIES)],
                alpha=0.62,
                linewidths=0,
                label=name,
                rasterized=len(true) > MOST_VECTOR_POINTS,
                zorder=2,
            )
        axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel=f"true {label}", ylabel=f"predicted {label}")
        _number_format(axes, share, both=True)
        if len(names) > 1:
            axes.legend(loc="upper left", handletextpad=0.2, markerscale=1.3, borderaxespad=0.2)

    return _svg(draw, (5.2, 5.0), f"Scatter plot of predicted against true {label}")


def histogram(values: Sequence[float], label: str, share: bool) -> str:
    """How the networks of the zoo are spread over the target."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        bounds = (0.0, 1.0) if share and all(0 <= v <= 1 for v in values) else None
        axes.hist(values, bins=25, range=bounds, color=SERIES[0], alpha=0.85, rwidth=0.9)
        axes.set(xlabel=label, ylabel="networks")
        axes.grid(visible=False, axis="x")
        _number_format(axes, share, both=False)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))

    return _svg(draw, (5.2, 3.3), f"Histogram of {label} over the zoo")


def curves(training: Mapping[str, Any]) -> str:
    """The training curve, one panel for each quantity, with the epoch that was kept."""
    panels: Mapping[str, Mapping[str, Sequence[float]]] = training["curves"]

    def draw(figure: Figure) -> None:
        for i, (title, lines) in enumerate(panels.items()):
            axes = figure.add_subplot(1, len(panels), i + 1)
            for k, (name, line) in enumerate(lines.items()):
                values = [float("nan") if v is None else v for v in line]
                axes.plot(training["epochs"], values, color=SERIES[k % len(SERIES)], linewidth=1.7, label=name)
            best = training.get("best_epoch")
            if best is not None:
                axes.axvline(best, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
                axes.annotate(
                    "kept",
                    (best, 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(-3, -2),
                    textcoords="offset points",
                    ha="right",
                    va="top",
                    color=MUTED,
                    fontsize=9,
                )
            positive = [v for line in lines.values() for v in line if v is not None and v > 0]
            if positive and len(positive) == sum(map(len, lines.values())) and max(positive) > 30 * min(positive):
                axes.set_yscale("log")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            if len(lines) > 1:
                axes.legend(loc="best")

    return _svg(draw, (5.2 if len(panels) == 1 else 10.6, 3.3), "Training curve: " + ", ".join(panels))


def intervals(models: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The score of every model as a point on its bootstrap interval."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, model in enumerate(reversed(models)):
            colour = SERIES[1] if model["kind"] == "baseline" else SERIES[0]
            low, high = model.get("interval") or (model["score"], model["score"])
            axes.plot([low, high], [i, i], color=colour, linewidth=2.4, alpha=0.55, solid_capstyle="round")
            axes.plot([model["score"]], [i], "o", color=colour, markersize=7)
            axes.annotate(f"{model['score']:.3f}", (model["score"], i), (0, 8), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(models)), [model["name"] for model in reversed(models)])
        axes.tick_params(axis="y", colors=INK)
        axes.set(ylim=(-0.6, len(models) - 0.25), xlabel=f"{metric}, with its 95 % interval")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))

    return _svg(draw, (10.6, 0.9 + 0.52 * len(models)), f"{metric} of each model with its interval")


def frontier(points: Sequence[Mapping[str, Any]], cost: str, label: str) -> str:
    """What was lost at each size that was tried, with the network that was taken."""
    panels = [
        (key, name)
        for key, name in (("kl", "divergence (nats)"), ("agreement", "agreement"), ("error", "error / spread"))
        if any(point.get(key) is not None for point in points)
    ][:2]

    def draw(figure: Figure) -> None:
        for number, (key, name) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            seen = sorted((p[cost], p[key], bool(p["chosen"])) for p in points if p[key] is not None)
            axes.plot([x for x, _, _ in seen], [y for _, y, _ in seen], color=SERIES[0], linewidth=1.2, alpha=0.5)
            for chosen, size in ((False, 5.0), (True, 9.0)):
                mine = [(x, y) for x, y, taken in seen if taken is chosen]
                axes.plot(
                    [x for x, _ in mine],
                    [y for _, y in mine],
                    "o",
                    color=SERIES[1 if chosen else 0],
                    markersize=size,
                    label="taken" if chosen else "tried",
                )
            low, high = min(y for _, y, _ in seen), max(y for _, y, _ in seen)
            if key != "agreement" and low > 0 and high > 30 * low:
                axes.set_yscale("log")
            axes.set(title=name, xlabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
            if cost != "latency_ms":
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            if key == "agreement":
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
            axes.legend(loc="best")

    return _svg(draw, (5.2 if len(panels) == 1 else 10.6, 3.2), f"What is lost at each number of {label}")


def _number_format(axes: Axes, share: bool, both: bool) -> None:
    if not share:
        return
    percent = FuncFormatter(lambda value, _: f"{100 * value:.0f} %")
    axes.xaxis.set_major_formatter(percent)
    if both:
        axes.yaxis.set_major_formatter(percent)


def _svg(draw: Any, size: tuple[float, float], description: str) -> str:
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": description}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The ids of two drawings on one page must differ. Those that are referred to (marks, clip paths) are salted hashes;
    # the others are mere numbers, and nobody needs them.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r' xmlns:xlink="[^"]*"', "", text, count=1).replace("xlink:href", "href")
    text = re.sub(r"^<svg [^>]*viewBox=\"([^\"]*)\"[^>]*>", _opening(description), text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("font-family: sans-serif", "font-family: inherit").replace("'sans-serif'", "inherit")


def _opening(description: str) -> str:
    label = description.replace("&", "and").replace("<", "").replace('"', "")
    return rf'<svg xmlns="http://www.w3.org/2000/svg" viewBox="\1" role="img" aria-label="{label}">'
