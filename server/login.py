"""The page that asks for the token, in place of any other page of a host that wants one."""

from html import escape

from .page import digest

STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f8; --panel: #fff; --text: #191b23; --muted: #555b6b;
        --line: #8b91a3; --accent: #4a4fd4; --on-accent: #fff; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ground: #101218; --panel: #181b23; --text: #e9ebf2; --muted: #a2a8ba; --line: #666d82;
          --accent: #a3a8ff; --on-accent: #14162b; --bad: #ff9c94 }
}
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--ground);
       color: var(--text); font: 1rem/1.5 system-ui, sans-serif }
main { box-sizing: border-box; width: min(25rem, 100vw - 2rem); padding: 2rem; border-radius: .9rem;
       background: var(--panel); box-shadow: 0 1px 3px #0002, 0 8px 30px #0001 }
h1 { margin: 0 0 .5rem; font-size: 1.25rem; letter-spacing: -.01em }
p { margin: 0 0 1rem; color: var(--muted) }
label { display: block; font-weight: 600; margin-bottom: .3rem }
input, button { box-sizing: border-box; width: 100%; font: inherit; padding: .55rem .7rem; border-radius: .5rem }
input { border: 1px solid var(--line); background: var(--ground); color: inherit }
button { margin-top: .8rem; border: 0; background: var(--accent); color: var(--on-accent); font-weight: 600;
         cursor: pointer }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
[role=alert] { min-height: 1.5em; margin: .6rem 0 0; color: var(--bad) }
small { color: var(--muted) }
"""

# A link cannot carry the token, so it gets a ticket; a plugin's page, whose requests cannot either, gets a cookie.
# The token stays in this tab of the browser.
SCRIPT = """
const KEPT = "latentwire.token";
const alert = document.querySelector("[role=alert]");
async function go(token) {
  const headers = {Authorization: `Bearer ${token}`};
  const folder = location.pathname.replace(/[^/]*$/, "");
  if (folder !== "/" && navigator.cookieEnabled) {
    const login = await fetch(`/login?path=${encodeURIComponent(folder)}`, {method: "POST", headers}).catch(() => null);
    if (login?.ok) {
      if (location.search.includes("ticket=")) location.replace(location.pathname);
      else location.reload();
      return true;
    }
  }
  const answer = await fetch("/ticket", {method: "POST", headers}).catch(() => null);
  if (!answer?.ok) return false;
  location.replace(`${location.origin}${location.pathname}?ticket=${(await answer.json()).ticket}`);
  return true;
}
const kept = sessionStorage.getItem(KEPT);
if (kept) go(kept);  // the page was loaded again
document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(event.target).get("token").trim();
  sessionStorage.setItem(KEPT, given);
  if (!await go(given)) alert.textContent = "That is not its token.";
});
"""

LOGIN_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src {digest(STYLE)}; script-src {digest(SCRIPT)}; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def login_page(reason: str) -> str:
    """HTML that asks for the token and comes back with a ticket."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>latentwire</title>
<style>{STYLE}</style>
<main>
<h1>latentwire</h1>
<p>This host asks for its token, which it printed when it started.</p>
<form><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Enter</button></form>
<p role="alert"></p>
<small>{escape(reason)}</small>
</main>
<script>{SCRIPT}</script>
</html>
"""
