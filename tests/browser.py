"""Open a page in a real browser without network: `python browser.py PAGE SCRIPT light|dark WIDTHxHEIGHT...`.

The browser is Qt WebEngine, Chromium from a Python package; it needs no display. Prints JSON: for each size what the
JavaScript expression SCRIPT gave, the requests that the page made besides itself, and what its console said.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from PyQt6.QtCore import QEventLoop, QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, QWebEngineSettings, QWebEngineUrlRequestInterceptor
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

DARK, LIGHT = 0, 1
FLAGS = "--disable-gpu --disable-dev-shm-usage --force-color-profile=srgb --blink-settings=preferredColorScheme={}"
A_MOMENT = 200
"""Milliseconds in which a script or an image does what it wants."""


class NoNetwork(QWebEngineUrlRequestInterceptor):
    """Lets a page load itself, and what it made itself, and notes and stops whatever else it asks for."""

    def __init__(self, page: QUrl) -> None:
        super().__init__()
        self.page = page
        self.requests: list[str] = []

    def interceptRequest(self, info: Any) -> None:
        if info.requestUrl() != self.page and info.requestUrl().scheme() != "blob":
            self.requests.append(info.requestUrl().toString())
            info.block(True)


class Page(QWebEnginePage):
    """A page whose console is kept."""

    def __init__(self, profile: QWebEngineProfile, parent: QWebEngineView) -> None:
        super().__init__(profile, parent)
        self.console: list[str] = []
        # Otherwise a local file could not even ask, and nothing would be seen of it.
        self.settings().setAttribute(QWebEngineSettings.WebAttribute.LocalContentCanAccessRemoteUrls, True)

    def javaScriptConsoleMessage(self, _level: Any, message: str, _line: int, _source: str) -> None:
        self.console.append(message)


def run(page: Page, script: str) -> Any:
    """Return what *script* gives in *page*, or in its first frame where it has one, a moment from now."""
    loop, found = QEventLoop(), []
    page.runJavaScript("0", lambda _: QTimer.singleShot(A_MOMENT, loop.quit))
    loop.exec()
    (page.mainFrame().children() or [page])[0].runJavaScript(script, lambda got: (found.append(got), loop.quit()))
    loop.exec()
    return found[0]


def look(url: QUrl, script: str, sizes: list[str]) -> dict[str, Any]:
    """Return what *script* gives in the page at *url* at each of *sizes*, its other requests, and its console."""
    profile, view, network = QWebEngineProfile(), QWebEngineView(), NoNetwork(url)
    profile.setUrlRequestInterceptor(network)
    page = Page(profile, view)
    view.setPage(page)
    view.show()
    found = []
    for size in sizes:
        view.resize(*map(int, size.split("x")))
        loop = QEventLoop()
        view.loadFinished.connect(loop.quit)
        view.load(url)
        loop.exec()
        found.append(run(page, script))
    return {"found": found, "requests": network.requests, "console": page.console}


if __name__ == "__main__":
    file, script, theme, *sizes = sys.argv[1:]
    # Chromium does not run in its sandbox as root, which one is in a container; the pages are our own.
    os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_DISABLE_SANDBOX": "1"}
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = FLAGS.format(DARK if theme == "dark" else LIGHT)
    application = QApplication(["browser"])
    seen = look(QUrl.fromLocalFile(str(Path(file).resolve())), script, sizes)
    print(json.dumps(seen), flush=True)
    os._exit(0)  # Qt's own way out depends on the order in which Python drops its objects
