"""The demo page, made with Gradio: input fields on the left, samples on the right."""

import html
import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from ditmoe.outside import printable
from ditmoe.serving.drawer import Drawer, StoppedError, command_of
from ditmoe.serving.form import Field, read, refuse_in_a_line, take_uploads_alone
from ditmoe.serving.shown import page_of

KEPT = 8
"""Number of results whose files are kept for download."""
SLIDES = 64
"""Largest count for which a slider is used."""
OLD = 3600
"""Seconds after which uploads are deleted."""
FIRST = ("prompt", "label", "num", "seed", "steps", "guidance", "top_k")
"""Fields that are always visible."""
CSS = """
.gradio-container { max-width: 1280px !important; width: 100%; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
#shown { min-height: 20rem; }
#shown iframe { width: 100%; height: min(85vh, 46rem); border: 0; display: block; }
#shown .empty { padding: 5rem 1rem; text-align: center; opacity: .65; }
#told p { margin: 0; overflow-wrap: anywhere; }
#told .error { color: #b3261e; font-weight: 600; }
.dark #told .error { color: #ffb4ab; }
#files .label-clear-button { display: none; }
#command { overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
"""
EMPTY = '<p class="empty">Samples appear here.</p>'
SHOW = """() => {
    const drawn = document.querySelector("#told .drawn"), shown = document.querySelector("#shown");
    if (drawn) shown.scrollIntoView({block: "nearest", behavior: "smooth"});
    return [];
}"""
"""Brings new samples into view on a telephone, where they lie below the fields; an error stays in view."""
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
"""Fonts of the browser; none is downloaded."""


@dataclass
class Studio:
    """State and event handlers of the page.

    Attributes:
        drawer: generates the samples.
        fields: of the page.
        folder: for uploads and results; its creator removes it.
        pages: HTML and folder of the latest results, by the name under which the server provides them.
    """

    drawer: Drawer
    fields: Sequence[Field]
    folder: Path
    pages: "OrderedDict[str, tuple[str, Path]]" = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, values: dict[str, Any], who: str, on_step: Any) -> tuple[str, str, list[str], str]:
        """Generate samples; returns the status line, the frame with the samples, their files, and the shell command.

        Raises:
            StoppedError, ValueError, OSError: see `Drawer.draw`.
        """
        words = read(self.fields, values, self.folder)
        place = Path(tempfile.mkdtemp(prefix="drawn-", dir=self.folder))
        try:
            drawn = self.drawer.draw(words, place, who, on_step)
            modality = self.drawer.restored.modality
            text = page_of(place, type(self.drawer.files), modality.classes, len(drawn.samples))
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        name = self._keep(text, place)
        told = [f"{len(drawn.samples)} drawn with seed {words['seed']}", *drawn.told]
        frame = f'<iframe src="./drawn/{name}" title="What was drawn" sandbox="allow-scripts"></iframe>'
        shell = command_of({key: _named(value) for key, value in words.items()}, self.drawer.models)
        return (
            line(self.plain("; ".join(told)), "drawn"),
            frame,
            [str(path) for path in drawn.paths],
            html.escape(printable(shell)),
        )

    def plain(self, text: str) -> str:
        """A message without the path of the folder of uploads."""
        return re.sub(rf"{re.escape(str(self.folder))}/(\w[\w-]*/)*", "", text)

    def explained(self, error: BaseException) -> str:
        """The message of an error, in one line."""
        if isinstance(error, OSError) and error.filename and error.strerror:
            return self.plain(f"{error.filename}: {error.strerror}")
        return self.plain(" ".join(str(error).split())) or type(error).__name__

    def _keep(self, text: str, place: Path) -> str:
        name = secrets.token_urlsafe(16)
        with self.lock:
            self.pages[name] = text, place
            while len(self.pages) > KEPT:
                _, (_, old) = self.pages.popitem(last=False)
                shutil.rmtree(old, ignore_errors=True)
        return name


def _named(value: Any) -> Any:
    """A value with uploaded files replaced by their names."""
    if isinstance(value, list):
        return [_named(each) for each in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def line(text: object, kind: str = "") -> str:
    """Any text as one escaped line of HTML."""
    role = "alert" if kind == "error" else "status"
    return f'<p role="{role}" class="{kind}">{html.escape(printable(text))}</p>'


def make_page(studio: Studio) -> gr.Blocks:
    """Build the page of a checkpoint."""
    about, checkpoint = studio.drawer.about(), str(studio.drawer.models.checkpoint)
    with gr.Blocks(title="ditmoe", analytics_enabled=False, delete_cache=(600, OLD)) as page:
        gr.HTML(f"<h1>{html.escape(printable(checkpoint))}</h1><p>{html.escape(printable(about))}</p>")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                parts = {each.name: _part(each) for each in studio.fields if each.name in FIRST}
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
                    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=120)
                told = gr.HTML(elem_id="told")
                others = [each for each in studio.fields if each.name not in FIRST]
                if others:
                    with gr.Accordion("More: shape and given parts", open=False):
                        parts |= {each.name: _part(each) for each in others}
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(EMPTY, elem_id="shown")
                files = gr.Files(label="Files", interactive=False, elem_id="files", height=220)
                with gr.Accordion("The same as a command", open=False):
                    command = gr.HTML(elem_id="command")

        for part in (files, *(part for part in parts.values() if isinstance(part, gr.File))):
            take_uploads_alone(part, studio.folder)

        def clicked(values: dict[Any, Any], request: gr.Request, progress: Any = gr.Progress()) -> Any:  # noqa: B008
            def on_step(done: int, total: int) -> None:
                progress((done, total), desc="drawing", unit="steps")

            filled = {name: values[part] for name, part in parts.items()}
            try:
                return studio.draw(filled, str(request.session_hash), on_step)
            except StoppedError:
                return line("stopped"), gr.skip(), gr.skip(), gr.skip()
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                return line(f"error: {studio.explained(error)}", "error"), gr.skip(), gr.skip(), gr.skip()

        def stopped(request: gr.Request) -> None:
            studio.drawer.stop(str(request.session_hash))

        def busy(on: bool) -> tuple[Any, Any]:
            return gr.update(interactive=not on), gr.update(interactive=on)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        began = draw.click(lambda: busy(True), outputs=[draw, stop], queue=False, **quiet)
        ended = began.then(
            clicked, set(parts.values()), [told, shown, files, command], concurrency_limit=1,
            api_visibility="private", show_progress_on=[shown],
        )  # fmt: skip
        ended.then(lambda: busy(False), outputs=[draw, stop], queue=False, js=SHOW, **quiet)
        stop.click(stopped, queue=False, **quiet)
        page.unload(stopped)
    refuse_in_a_line(page, lambda text: gr.Error(text, print_exception=False))
    page.queue(max_size=16, api_open=False)
    page.has_launched = True  # otherwise Gradio would not check that a file is one of its own
    return page


def _part(each: Field) -> Any:
    """The Gradio component of a field."""
    label, info = each.name, printable(each.about) or None
    if each.kind == "choice":
        return gr.Dropdown(list(each.choices), value=each.default, label=label, info=info, elem_id=label)
    if each.kind == "count" and each.most is not None and each.most <= SLIDES:
        return gr.Slider(1, each.most, value=each.default, step=1, label=label, info=info, elem_id=label)
    if each.kind in ("count", "number"):
        return gr.Number(
            value=each.default,
            label=label,
            info=info,
            elem_id=label,
            precision=0 if each.kind == "count" else None,
        )
    if each.kind == "files":
        many = "single" if each.most == 1 else "multiple"
        return gr.File(file_count=many, label=f"{label}: {each.about}", elem_id=label, height=180)
    return gr.Textbox(
        value=each.default,
        label=label,
        info=info,
        elem_id=label,
        max_length=2000,
        placeholder=each.empty or None,
    )


def theme() -> gr.themes.Base:
    """Gradio's default theme with the fonts of the browser."""
    own, mono = ([gr.themes.Font(name) for name in names] for names in FONTS)
    return gr.themes.Default(font=own, font_mono=mono).set(block_info_text_color="*neutral_600")
