"""Training curves: plots of every metric of a run over steps, in curves.png."""

import io
from collections import defaultdict

import numpy as np

from dit_video.storage.json_lines import parse_lines
from dit_video.storage.retrying_files import RetryingFile
from dit_video.training.tracker import metrics_line

FILE = "curves.png"


def plot_record(record: RetryingFile, picture: RetryingFile) -> None:
    """Plots every metric of metrics.jsonl over steps, as a PNG.

    Step metrics are drawn raw in grey with a running median above, since single steps are noisy.
    """
    # Here: a run draws when it ends, and starts sooner without.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in parse_lines(record.read(), metrics_line).good:
        if "rates" in line:
            values, prefix = {"clips_per_second": line["rates"]["clips_per_second"]}, "rate"
        elif "evaluation" in line:
            values, prefix = {k: v for k, v in line.items() if k not in ("step", "evaluation")}, "held-out"
        else:
            values, prefix = {k: v for k, v in line.items() if k != "step"}, "train"
        for name, value in values.items():
            if not name.startswith("count/"):
                series[f"{prefix}: {name}"].append((line["step"], value))
    columns = 4
    rows = max(1, -(-len(series) // columns))
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, points) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        steps, values = np.array(points).T
        smooth = name.startswith("train") and len(values) > 100
        axes.plot(
            steps,
            values,
            color="0.75" if smooth else "C0",
            linewidth=0.8 if smooth else 1.5,
            marker="o" if len(values) < 20 else None,
        )
        if smooth:
            window = len(values) // 50
            blocks = len(values) // window
            trim = slice(0, blocks * window)
            axes.plot(
                steps[trim].reshape(blocks, window).mean(1), np.median(values[trim].reshape(blocks, window), axis=1)
            )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80, format="png")
    picture.replace(drawn.getvalue())
