"""Ask the chat page at URL something in a real browser: `python chat_in_browser.py URL QUESTION`.

Prints JSON: the page's title before the question, its texts while the answer came, what it showed at the end, and what
its console said.
"""

import json
import os
import sys

os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_DISABLE_SANDBOX": "1"}
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--disable-gpu --disable-dev-shm-usage"

from PyQt6.QtCore import QEventLoop, QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEngineProfile
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

from tests.browser import Page

WATCH = """
texts = [];
new MutationObserver(() => texts.push(document.querySelector(".assistant")?.textContent || ""))
  .observe(document.getElementById("messages"), { childList: true, subtree: true });
"""
ASK = "document.getElementById('text').value = {}; document.getElementById('send').click()"
UNNAMED = "Chat"
SEEN = "[texts, [...document.querySelectorAll('#messages > *')].map((each) => [each.className, each.textContent])]"

url, question = sys.argv[1:]
application = QApplication(["browser"])
profile, view = QWebEngineProfile(), QWebEngineView()
page = Page(profile, view)
view.setPage(page)
view.show()
loop = QEventLoop()
view.loadFinished.connect(loop.quit)
view.load(QUrl(url))
loop.exec()
texts, found, titles = [], [], []


def ask(title: str) -> None:
    titles.append(title)
    if title != UNNAMED:
        page.runJavaScript(WATCH)
        page.runJavaScript(ASK.format(json.dumps(question)))
        timer.start(50)
    else:
        QTimer.singleShot(50, lambda: page.runJavaScript("document.title", ask))


def look() -> None:
    page.runJavaScript(SEEN, note)


def note(seen: tuple[list[str], list[list[str]]]) -> None:
    texts[:], found[:] = seen
    if any(kind == "note" or "error" in kind for kind, _ in found):
        loop.quit()


timer = QTimer()
timer.timeout.connect(look)
page.runJavaScript("document.title", ask)
QTimer.singleShot(60_000, loop.quit)
loop.exec()
print(json.dumps({"title": titles[-1], "texts": texts, "found": found, "console": page.console}), flush=True)
os._exit(0)
