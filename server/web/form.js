// Forms made from JSON Schema. Each part of one is a control:
//   element         where it is
//   read()          its value, undefined where it is left to the host; pictures are `Picture`s
//   write(value)    shows a value; undefined is its default
//   fail(path, text)  shows what is wrong where, and says whether there is such a place
//   clear()         takes that back

import { changed, el, newId, toggle, tool } from "./dom.js";
import { Picture, chosen } from "./pictures.js";
import { bounds, plain, worded } from "./schema.js";

const WIDEST_SLIDER = 5000; // steps; beyond that one cannot hit a value
const COLOUR = /^\^?#\[[0-9a-f-]+\]\{6\}\$?$/i; // a pattern such as ^#[0-9a-f]{6}$

/** The control for a value of this schema. `isThere`: null is no value of it, whatever the schema says. */
export function control(schema, name, defs = schema.$defs ?? {}, required = false, isThere = false) {
  const kind = { ...plain(schema, defs), ...(isThere && { nullable: false }) };
  const label = worded(name);
  if (kind.enum) return choice(kind, label, required);
  if (kind.binary) return picture(kind, label);
  if (kind.type === "boolean") return flag(kind, label);
  if (kind.type === "integer" || kind.type === "number") return number(kind, label);
  if (kind.type === "string") return COLOUR.test(kind.pattern ?? "") && !kind.nullable ? colour(kind, label) : text(kind, label);
  if (kind.type === "array") return list(kind, label, defs);
  if (kind.properties && !kind.nullable) return group(kind, defs);
  if (kind.properties) return optional(group({ ...kind, nullable: false }, defs), label);
  return json(kind, label);
}

/** An object's controls, one below the other. */
export function group(schema, defs = schema.$defs ?? {}) {
  const parts = new Map();
  for (const [name, part] of Object.entries(schema.properties ?? {})) {
    parts.set(name, control(part, name, defs, schema.required?.includes(name)));
  }
  return {
    element: el("div", { class: "stack" }, ...[...parts.values()].map((part) => part.element)),
    read() {
      const all = [...parts].map(([name, part]) => [name, part.read()]);
      return Object.fromEntries(all.filter(([, value]) => value !== undefined));
    },
    write: (value) => parts.forEach((part, name) => part.write(value?.[name])),
    fail: ([name, ...rest], message) => parts.get(name)?.fail(rest, message) ?? false,
    clear: () => parts.forEach((part) => part.clear()),
  };
}

/** A label, an input, a hint, and room for what is wrong. */
export function field(label, input, hint, inside = input) {
  const id = (input.id ||= newId("field"));
  const wrong = el("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  const said = hint ? el("p", { class: "hint", id: `${id}-hint` }, hint) : null;
  const element = el("div", { class: "field" }, el("label", { for: id }, label), inside, said, wrong);
  const marks = marking(input, wrong, said?.id);
  return { element, ...marks };
}

/** Shows at an input what is wrong with it. */
export function marking(input, wrong, hint = "") {
  const describe = (ids) => (ids ? input.setAttribute("aria-describedby", ids) : input.removeAttribute("aria-describedby"));
  describe(hint);
  return {
    fail(_, message) {
      wrong.textContent = message;
      wrong.hidden = false;
      input.setAttribute("aria-invalid", "true");
      describe(`${hint} ${wrong.id}`.trim());
      return true;
    },
    clear() {
      if (wrong.hidden) return;
      wrong.hidden = true;
      input.removeAttribute("aria-invalid");
      describe(hint);
    },
  };
}

/** A control of one among many: seen with a short name, told with a whole one. */
export function shortly(part, label, whole) {
  part.element.querySelector("label").textContent = label;
  for (const input of part.element.querySelectorAll("input")) input.setAttribute("aria-label", input.type === "range" ? `${whole}, slider` : whole);
  return part;
}

/** A number's input and a slider that follow each other. */
export function joined(input, slider) {
  slider.addEventListener("input", () => (input.value = slider.value));
  const follow = () => (slider.value = input.value === "" ? input.placeholder || slider.min : input.value);
  input.addEventListener("input", follow);
  return follow;
}

function number(kind, label) {
  const { min, max, step } = bounds(kind);
  const input = el("input", { type: "number", min, max, step: step ?? "any", inputmode: step ? "numeric" : "decimal" });
  if (kind.nullable) input.placeholder = "default";
  let follow = () => {};
  let inside = input;
  const fine = step ?? (max - min) / 100;
  if (min !== undefined && max !== undefined && (max - min) / fine <= WIDEST_SLIDER) {
    const slider = el("input", { type: "range", min, max, step: fine, "aria-label": `${label}, slider` });
    follow = joined(input, slider);
    inside = el("div", { class: "pair" }, slider, input);
  }
  const start = kind.default ?? (kind.nullable ? "" : (min ?? 0));
  const shown = field(label, input, kind.description, inside);
  const write = (value) => {
    input.value = value ?? start;
    follow();
  };
  write();
  return { ...shown, read: () => valueOf(input), write };
}

/** A number input's value; what is no number goes to the host as it is, which says so. */
export function valueOf(input) {
  if (input.validity.badInput) return "?";
  return input.value === "" ? undefined : Number(input.value);
}

function text(kind, label) {
  const isLong = (kind.maxLength ?? 0) > 1000;
  const input = el(isLong ? "textarea" : "input", isLong ? { rows: 2 } : { type: "text", autocomplete: "off" });
  const write = (value) => (input.value = value ?? kind.default ?? "");
  write();
  return {
    ...field(label, input, kind.description),
    read: () => (input.value === "" && (kind.nullable || kind.default !== undefined) ? undefined : input.value),
    write,
  };
}

function colour(kind, label) {
  const input = el("input", { type: "color" });
  const write = (value) => (input.value = value ?? kind.default ?? kind.description?.match(/#[0-9a-fA-F]{6}/)?.[0] ?? "#808080");
  write();
  return { ...field(label, input, kind.description), read: () => input.value, write };
}

function choice(kind, label, required) {
  const isOpen = kind.nullable || (!required && kind.default === undefined);
  const options = kind.enum.filter((value) => value !== null);
  const input = el("select", {}, isOpen ? el("option", { value: "" }, "default") : null, ...options.map((value) => el("option", { value: String(value) }, String(value))));
  const write = (value) => (input.value = String(value ?? kind.default ?? (isOpen ? "" : options[0])));
  write();
  return {
    ...field(label, input, kind.description),
    read: () => options.find((value) => String(value) === input.value),
    write,
  };
}

function flag(kind, label) {
  const { element, input } = toggle(label, Boolean(kind.default), () => {});
  input.id = newId("flag");
  const wrong = el("p", { class: "wrong", id: `${input.id}-wrong`, hidden: true });
  const hint = kind.description ? el("p", { class: "hint", id: `${input.id}-hint` }, kind.description) : null;
  return {
    element: el("div", { class: "field" }, element, hint, wrong),
    read: () => input.checked,
    write: (value) => (input.checked = value ?? kind.default ?? false),
    ...marking(input, wrong, hint?.id),
  };
}

function picture(kind, label) {
  const input = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp" });
  const shown = el("img", { alt: "", hidden: true });
  const gone = tool("close", `Take ${label} out`, () => (write(), changed(input)));
  let value;
  function write(next) {
    value = typeof next === "string" ? Picture.known(next) : next;
    if (!value) input.value = "";
    gone.hidden = !value;
    shown.hidden = !value?.blob;
    if (shown.src) URL.revokeObjectURL(shown.src);
    shown.removeAttribute("src");
    if (value?.blob) shown.src = URL.createObjectURL(value.blob);
  }
  input.addEventListener("change", async () => {
    write(await chosen(input.files[0]));
    changed(input);
  });
  write();
  const inside = el("div", { class: "chosen" }, shown, input, gone);
  return { ...field(label, input, kind.description, inside), read: () => value, write };
}

/** What may be left out: a switch, and the rest below it. */
function optional(inner, label) {
  const body = el("div", { class: "inner", hidden: true }, inner.element);
  const { element, input } = toggle(label, false, (on) => (body.hidden = !on));
  return {
    element: el("div", { class: "field" }, element, body),
    read: () => (input.checked ? inner.read() : undefined),
    write(value) {
      input.checked = value !== undefined && value !== null;
      body.hidden = !input.checked;
      inner.write(value ?? undefined);
    },
    fail: inner.fail,
    clear: inner.clear,
  };
}

function list(kind, label, defs) {
  const rows = [];
  const body = el("div", { class: "stack" });
  const wrong = el("p", { class: "wrong", hidden: true });
  function add(value) {
    const item = control(kind.items ?? {}, `${label} ${rows.length + 1}`, defs, true);
    const row = { item, element: el("div", { class: "row" }, item.element) };
    row.element.append(tool("close", `Take ${label} ${rows.length + 1} out`, () => (take(row), changed(body))));
    item.write(value);
    rows.push(row);
    body.append(row.element);
  }
  function take(row) {
    rows.splice(rows.indexOf(row), 1);
    row.element.remove();
  }
  const more = tool("plus", `One more for ${label}`, () => (add(), changed(body)));
  const write = (values) => {
    for (const row of [...rows]) take(row);
    for (const value of values ?? kind.default ?? []) add(value);
  };
  write();
  return {
    element: el("fieldset", { class: "field" }, el("legend", {}, label), body, more, wrong),
    read: () => rows.map(({ item }) => item.read()),
    write,
    fail([place, ...rest], message) {
      if (rows[place]?.item.fail(rest, message)) return true;
      wrong.textContent = message;
      wrong.hidden = false;
      return true;
    },
    clear() {
      wrong.hidden = true;
      for (const { item } of rows) item.clear();
    },
  };
}

/** Whatever else there may be, as JSON. */
function json(kind, label) {
  const input = el("textarea", { rows: 2, spellcheck: "false" });
  const write = (value) => (input.value = (value ?? kind.default) === undefined ? "" : JSON.stringify(value ?? kind.default));
  write();
  return {
    ...field(label, input, kind.description ?? "as JSON"),
    read() {
      if (!input.value.trim()) return undefined;
      try {
        return JSON.parse(input.value);
      } catch {
        return input.value; // the host says what it wants in its place
      }
    },
    write,
  };
}
