"""The plain page at `/`: what this is, and where to read on."""

from html import escape

from .. import __version__

STYLE = """
body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem;
       color-scheme: light dark }
code, pre { font-family: ui-monospace, monospace }
pre { font-size: .9rem; padding: 1rem; border: 1px solid; border-radius: .4rem; overflow: auto }
"""


def page(docs: list[str]) -> str:
    """HTML that needs nothing else."""
    links = "\n".join(f'<li><a href="/docs/{escape(name)}">{escape(name)}</a></li>' for name in docs)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>latentwire</title>
<style>{STYLE}</style>
<h1>latentwire</h1>
<p>This host makes pictures with diffusion pipelines and streams every denoising step over one WebSocket,
<code>/ws</code>. Version {__version__}.</p>
<pre>latentwire generate "red apple on a blue background" -o apple.png</pre>
<h2>Read on</h2>
<ul>
{links}
</ul>
<p><a href="/healthz">health</a> · <a href="/readyz">readiness</a></p>
</html>
"""
