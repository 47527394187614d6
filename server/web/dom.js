// Makes elements.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element: `el("button", {type: "button", class: "tool", onclick: f}, "text", child)`. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  made.append(use);
  return made;
}

/** A button with an icon alone, whose name says what it does. */
export function tool(name, label, onclick) {
  return el("button", { type: "button", class: "tool", "aria-label": label, title: label, onclick }, icon(name));
}

/** A button with an icon and a word. */
export function plain(name, label, onclick) {
  return el("button", { type: "button", class: "plain", onclick }, icon(name), label);
}

let made = 0;

/** An id that nothing else on the page has. */
export const newId = (name) => `${name}-${++made}`;

/** A switch with its name. */
export function toggle(label, checked, onchange, name = label) {
  const input = el("input", { type: "checkbox", role: "switch", checked, onchange: () => onchange(input.checked) });
  if (name !== label) input.setAttribute("aria-label", name);
  const whole = el("label", { class: "switch" }, input, el("span", { class: "track", "aria-hidden": "true" }), label);
  return { element: whole, input };
}

/** Show or hide what a button discloses. */
export function disclose(button, body, open = button.getAttribute("aria-expanded") !== "true") {
  button.setAttribute("aria-expanded", String(open));
  body.hidden = !open;
}

/** Tell a form that something in it was changed by other means than typing. */
export const changed = (element) => element.dispatchEvent(new Event("input", { bubbles: true }));
