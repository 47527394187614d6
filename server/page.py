"""The plain page at `/`: what this is, and where to read on; and the one that asks for the token."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from .. import __version__
from ..core.plugin_host import PluginReport

STYLE = """
body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem;
       color-scheme: light dark }
code, pre { font-family: ui-monospace, monospace }
pre { font-size: .9rem; padding: 1rem; border: 1px solid; border-radius: .4rem; overflow: auto }
input, button { font: inherit; padding: .3rem .6rem }
"""

# Links cannot carry the token, so each gets a ticket. The token stays in this tab of the browser.
SCRIPT = """
const token = sessionStorage.getItem("latentwire.token");
async function go(path, token) {
  const answer = await fetch("/ticket", {method: "POST", headers: {Authorization: `Bearer ${token}`}});
  if (!answer.ok) return false;
  location.assign(`${location.origin}${path}?ticket=${(await answer.json()).ticket}`);
  return true;
}
const form = document.querySelector("form");
if (form && token) go(location.pathname, token);  // the page was loaded again
if (location.search) history.replaceState(null, "", location.pathname);
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(event.target).get("token");
  sessionStorage.setItem("latentwire.token", given);
  const taken = await go(location.pathname, given);
  if (!taken) document.querySelector("[role=alert]").textContent = "That is not its token.";
});
if (token) document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='/docs/']");
  if (!link) return;
  event.preventDefault();
  go(link.pathname, token);
});
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
}


def page(docs: list[str], plugins: Sequence[PluginReport]) -> str:
    """HTML that needs nothing else."""
    links = "\n".join(f'<li><a href="/docs/{escape(name)}">{escape(name)}</a></li>' for name in docs)
    rows = "\n".join(f"<li>{_plugin(report)}</li>" for report in plugins)
    return _page(
        f"""<p>This host makes pictures with diffusion pipelines and streams every denoising step over one WebSocket,
<code>/ws</code>. Version {__version__}.</p>
<pre>latentwire generate "red apple on a blue background" -o apple.png</pre>
<h2>Plugins</h2>
<ul>
{rows}
</ul>
<h2>Read on</h2>
<ul>
{links}
</ul>
<p><a href="/healthz">health</a> · <a href="/readyz">readiness</a></p>"""
    )


def _plugin(report: PluginReport) -> str:
    what = f"<code>{escape(report.name)}</code> {escape(report.version or '')} {report.state}"
    return f"{what}: {escape(report.error)}" if report.error else what


def login_page(reason: str) -> str:
    """HTML that asks for the token and comes back with a ticket."""
    return _page(
        f"""<p>This host asks for its token, which it printed when it started.</p>
<form><label>Token <input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button>Enter</button></form>
<p role="alert"></p>
<p><small>{escape(reason)}</small></p>"""
    )


def _page(body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>latentwire</title>
<style>{STYLE}</style>
<h1>latentwire</h1>
{body}
<script>{SCRIPT}</script>
</html>
"""
