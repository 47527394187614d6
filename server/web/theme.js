// Light or dark, before anything is painted; a plain script, since modules wait for the page.
(() => {
  const KEPT = "latentwire.theme";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = () => (root.dataset.theme = localStorage.getItem(KEPT) ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", show);
  show();
  window.switchTheme = () => {
    const other = root.dataset.theme === "dark" ? "light" : "dark";
    if (other === (dark.matches ? "dark" : "light")) localStorage.removeItem(KEPT);
    else localStorage.setItem(KEPT, other);
    show();
  };
})();
