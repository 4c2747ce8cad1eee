"""One page about a run, as Markdown and as a single HTML file."""

import base64
import html
import math
from pathlib import Path
from typing import Any

from jaxdp import accounting
from jaxdp._files import write_text
from jaxdp.training._errors import UserError
from jaxdp.training.config._config import Config
from jaxdp.training.config._io import load_config
from jaxdp.training.files._failures import in_one_sentence
from jaxdp.training.files._run_directory import RunDirectory
from jaxdp.training.files._sealed import read_json, read_text
from jaxdp.training.reporting._plots import plot_denoising, plot_epsilon, plot_scores, plot_spectrum
from jaxdp.training.reporting._results import check_results
from jaxdp.training.running._console import epsilon_text
from jaxdp.training.running._manifest import check_files, read_manifest
from jaxdp.training.running._metrics import read_details, read_metrics
from jaxdp.training.running._plan import Plan, plan_from_saved
from jaxdp.training.tasks._task import METRICS, Metric

# A wider table than this cannot be read.
_WIDEST_MATRIX = 20

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { border-bottom: 1px solid #ddd; padding: .3em .9em; text-align: left }
pre { background: #f6f6f4; padding: 1em; overflow-x: auto; font-size: 13px } img { max-width: 100% }
.warning { background: #fbe9e5; border-left: 4px solid #b3331f; padding: .6em 1em; font-weight: 600 }
"""


def write_report(run: RunDirectory, *, spectrum: bool = False) -> list[Path]:
    """Draw the plots and write `report.md` and `report.html`, from the files of the run alone.

    Args:
      run: a run, finished or not.
      spectrum: also draw the singular values of one layer's gradient before and after denoising.

    Returns:
      The files written.

    Raises:
      UserError: the directory holds no run, or none that has singular values to draw.
    """
    run.require()
    with in_one_sentence(run):
        if run.manifest.exists():
            check_files(run, read_manifest(run))
        check_results(run)
        return _write(run, _read_result(run), spectrum)


def write_finished_report(run: RunDirectory, result: dict[str, Any]) -> list[Path]:
    """The same of a run whose result is about to be written."""
    return _write(run, result, spectrum=False)


def _write(run: RunDirectory, result: dict[str, Any] | None, spectrum: bool) -> list[Path]:
    config = load_config(run.config)
    plan, seeded = _read_plan(run, config)
    lines = read_metrics(run.metrics, run.metrics_sums)
    metric = METRICS[config.task.kind]
    scores = [line for line in lines if metric.name in line]
    ends = [(phase.config.name, phase.last_step) for phase in plan.phases]
    reached = None if result is not None else _reached(run, lines)
    images = []
    if scores:
        images.append(("Learning curve", run.path / "learning_curve.png"))
        plot_scores(scores, images[-1][1], metric, ends=ends, guarantee=_guarantee(plan, reached))
    if config.privacy.enabled:
        images.append(("Privacy spent", run.path / "epsilon.png"))
        target = config.privacy.epsilon
        plot_epsilon(plan.curve, images[-1][1], delta=config.privacy.delta, target=target, ends=ends, reached=reached)
    if denoised := [line for line in lines if "denoise" in line]:
        images.append(("Denoising", run.path / "denoise.png"))
        plot_denoising(denoised, images[-1][1], ends=ends)
    if spectrum:
        images.append(("Singular values", run.path / "spectrum.png"))
        plot_spectrum(_with_spectrum(run, config, lines), images[-1][1])
    details = read_details(run.metrics, scores[-1]["step"]) if scores else {}
    scores = [*scores[:-1], scores[-1] | details] if scores else []
    sections = _Sections(run, config, plan, seeded, result, scores, lines, reached)
    write_text(run.path / "report.md", sections.markdown(images))
    write_text(run.path / "report.html", sections.html(images))
    return [path for _, path in images] + [run.path / "report.md", run.path / "report.html"]


def _read_plan(run: RunDirectory, config: Config) -> tuple[Plan, bool]:
    """What calibration found, and whether the seed was chosen."""
    saved = read_json(run.plan)
    try:
        return plan_from_saved(config, saved["num_examples"], saved), bool(saved["seeded"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UserError(f"{run.plan} is damaged, as it is no plan of {run.config}: restore it.") from None


def _read_result(run: RunDirectory) -> dict[str, Any] | None:
    """The result of a finished run."""
    if not run.result.exists():
        return None
    result = read_json(run.result)
    wanted = {"held_out_examples": int, "seconds_per_step": dict, "device": str}
    if not all(isinstance(result.get(name), kind) for name, kind in wanted.items()):
        raise UserError(f"{run.result} is damaged, as it is no result of a run: restore it.")
    return result


def _read_samples(run: RunDirectory) -> list[dict[str, str]]:
    """What a language model wrote."""
    samples = read_json(run.samples, list) if run.samples.exists() else []
    if not all(isinstance(x, dict) and {"prompt", "before", "after"} <= x.keys() for x in samples):
        raise UserError(f"{run.samples} is damaged, as it holds no samples: restore it.")
    return samples


def _with_spectrum(run: RunDirectory, config: Config, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations that have singular values, or a sentence that says why none has."""
    if found := [line for line in lines if "spectrum" in line]:
        return found
    if not config.denoise.enabled:
        raise UserError(f"{run.path} has no singular values, as it was not denoised: train with denoise.enabled true.")
    named = config.denoise.spectrum
    what = "no phase trains a matrix" if named is None else f"no phase denoises denoise.spectrum = {named!r}"
    raise UserError(f"{run.path} has no singular values, as {what} (or none was evaluated so far).")


def _reached(run: RunDirectory, lines: list[dict[str, Any]]) -> int:
    """The last step that anything was kept of: a line of the log, or a checkpoint."""
    saved = run.saved.iterdir() if run.saved.is_dir() else ()
    return max([0, *(line["step"] for line in lines), *(int(path.name) for path in saved if path.name.isdigit())])


def _guarantee(plan: Plan, reached: int | None) -> str:
    """What was spent: of an unfinished run at the step that it has reached, not what is planned."""
    if math.isinf(plan.epsilon):
        return "NO privacy guarantee"
    if reached is None or reached >= plan.phases[-1].last_step:
        return f"epsilon {epsilon_text(plan.epsilon)}, delta {plan.config.privacy.delta:g}"
    spent = epsilon_text(plan.epsilon_after(reached))
    return f"epsilon {spent} spent up to step {reached}, delta {plan.config.privacy.delta:g}"


class _Sections:
    """What both formats show."""

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        plan: Plan,
        seeded: bool,
        result: dict[str, Any] | None,
        scores: list[dict[str, Any]],
        lines: list[dict[str, Any]],
        reached: int | None,
    ):
        self.title = f"Report: {run.path.name}"
        self.statement = read_text(run.statement_text)
        self.config = read_text(run.config)
        self.warnings = list(plan.warnings)
        if seeded:
            self.warnings.append(
                "The seed was chosen with --seed: the guarantee holds only against those who do not know it."
            )
        if result is None:
            self.warnings.append(
                f"This run is not finished (seen up to step {reached} of {config.total_steps}): `jaxdp resume "
                f"{run.path}`."
            )
        self.rows = _rows(plan, scores, result, METRICS[config.task.kind], reached)
        last = scores[-1] if scores else {}
        self.classes = class_tables(last.get("confusion", []), last.get("classes", []))
        self.samples = _read_samples(run)
        private = [line["private"] for line in lines if "private" in line]
        self.private = _private_rows(private)

    def markdown(self, images: list[tuple[str, Path]]) -> str:
        parts = [f"# {self.title}", ""]
        parts += [line for warning in self.warnings for line in (f"> **{warning}**", "")]
        parts += ["## Results", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in self.rows), ""]
        for name, path in images:
            parts += [f"![{name}]({path.name})", ""]
        for name, rows in self.classes:
            head, *body = [[_cell(text) for text in row] for row in rows]
            lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
            parts += [f"## {name}", "", *lines, ""]
        if self.samples:
            parts += ["## Samples", ""]
            for sample in self.samples:
                parts += ["```", *(f"{name}: {_one_line(text)}" for name, text in _shown(sample)), "```", ""]
        if self.private:
            parts += ["## PRIVATE: outside the guarantee, not to be published", "", "| | |", "|---|---|"]
            parts += [*(f"| {a} | {b} |" for a, b in self.private), ""]
        parts += ["## Privacy statement", "", "```", self.statement.rstrip(), "```", ""]
        parts += ["## Configuration", "", "```toml", self.config.rstrip(), "```", ""]
        return "\n".join(parts)

    def html(self, images: list[tuple[str, Path]]) -> str:
        def table(rows: list[tuple[str, str]]) -> str:
            cells = (f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
            return f"<table>{''.join(cells)}</table>"

        title = html.escape(self.title)
        parts = [f"<h1>{title}</h1>"]
        parts += [f'<p class="warning">{html.escape(warning)}</p>' for warning in self.warnings]
        parts += ["<h2>Results</h2>", table(self.rows)]
        for name, path in images:
            content = base64.b64encode(path.read_bytes()).decode()
            parts.append(f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{content}"></p>')
        for name, (head, *body) in self.classes:
            parts += [f"<h2>{html.escape(name)}</h2>", "<table>", _html_row(head, "th"), *(_html_row(r) for r in body)]
            parts += ["</table>"]
        if self.samples:
            parts += ["<h2>Samples</h2>"]
            parts += [table([(name, _one_line(text)) for name, text in _shown(s)]) + "<br>" for s in self.samples]
        if self.private:
            parts += ["<h2>PRIVATE: outside the guarantee, not to be published</h2>", table(self.private)]
        parts += ["<h2>Privacy statement</h2>", f"<pre>{html.escape(self.statement)}</pre>"]
        parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(self.config)}</pre>"]
        head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _html_row(cells: list[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in cells) + "</tr>"


def _cell(text: str) -> str:
    """A text that cannot end a cell or a line of a Markdown table."""
    return _one_line(text).replace("|", "/")


def class_tables(confusion: list[list[int]], names: list[str]) -> list[tuple[str, list[list[str]]]]:
    """Per-class scores and the confusion matrix, of the held-out examples; nothing where there are no classes."""
    if not confusion or len(names) != len(confusion):
        return []
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    scores = [["class", "examples", "found (recall)", "right when said (precision)"]]
    for index, (name, row) in enumerate(zip(names, confusion, strict=True)):
        scores.append([name, f"{sum(row):,}", _share(row[index], sum(row)), _share(row[index], columns[index])])
    found = [("Classes, on the held-out examples", scores)]
    if len(names) <= _WIDEST_MATRIX:
        matrix = [["true class, and what was said", *names]]
        matrix += [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, confusion, strict=True)]
        found.append(("Confusion matrix", matrix))
    return found


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "none"


def _shown(sample: dict[str, str]) -> list[tuple[str, str]]:
    """A sample line by line."""
    names = {"prompt": "prompt", "before": "before training", "after": "after training"}
    return [(words, sample[name]) for name, words in names.items()]


def _one_line(text: str) -> str:
    """A text in which nothing can end a line or a code block of a report."""
    return " ".join(text.replace("`", "'").split())


def _rows(
    plan: Plan,
    scores: list[dict[str, Any]],
    result: dict[str, Any] | None,
    metric: Metric,
    reached: int | None,
) -> list[tuple[str, str]]:
    rows = []
    if scores:
        last = scores[-1]
        if scores[0]["step"] == 0:
            rows.append((f"{metric.words} before training", metric.number(scores[0][metric.name])))
        errors = [f" (standard error {error:.2g})" for error in last.get("standard_errors", [])] or ["", ""]
        rows.append((metric.words, f"{metric.number(last[metric.name])}{errors[0]} after step {last['step']}"))
        if confusion := last.get("confusion"):
            sizes = [sum(row) for row in confusion]
            most = max(range(len(sizes)), key=sizes.__getitem__)
            named = "".join(f' "{name}"' for name in last.get("classes", [])[most : most + 1])
            text = f"{_share(sizes[most], sum(sizes))}, by always saying the most frequent class{named}"
            rows.append(("majority baseline", text))
        rows.append(("held-out loss", f"{last['held_out_loss']:.4f} nats{errors[1]}"))
        if "clipping_norm" in last:
            rows.append(("adaptive clipping norm", f"{last['clipping_norm']:g} after step {last['step']}"))
    if result is not None:
        rows.append(("held-out examples", f"{result['held_out_examples']:,} (outside the guarantee)"))
    rows.append(("training examples", f"{plan.num_examples:,}"))
    rows.append(("guarantee", _guarantee(plan, reached)))
    if reached is not None and math.isfinite(plan.epsilon):
        rows.append(("planned", _guarantee(plan, None)))
    for phase in plan.phases:
        noise = "" if phase.noise_multiplier is None else f", noise multiplier {phase.noise_multiplier:.4g}"
        if noise and plan.config.clipping.adaptive:
            noise += f" ({phase.sum_noise_multiplier(plan.config):.4g} on the sum)"
        text = f"{phase.config.steps} steps of {phase.sampler.expected_batch_size:,.6g} examples{noise}"
        rows.append((f"phase {phase.config.name}", text))
    if result is not None:
        for name, seconds in result["seconds_per_step"].items():
            rows.append((f"time per step, {name}", f"{seconds:g} s (average)"))
        rows.append(("device", result["device"]))
    return rows


def _private_rows(private: list[dict[str, float]]) -> list[tuple[str, str]]:
    if not private:
        return []
    return [
        (name, f"{sum(line[name] for line in private) / len(private):.4g} (mean over {len(private)} steps)")
        for name in private[0]
    ]


def read_statement(run: RunDirectory) -> accounting.PrivacyStatement:
    """The statement that the run was published with."""
    return accounting.PrivacyStatement.from_json(read_text(run.statement_json))
