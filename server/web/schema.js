// Reads JSON Schema as `describe` gives it.

const BOUNDS = { min: ["minimum", "exclusiveMinimum"], max: ["maximum", "exclusiveMaximum"] };

/** A schema without references and choices: `{...schema, nullable, binary}`. */
export function plain(schema, defs) {
  let found = schema;
  let nullable = false;
  let binary = false;
  for (;;) {
    if (found.$ref) {
      const { $ref, ...beside } = found;
      found = { ...defs[$ref.split("/").pop()], ...beside };
    } else if (found.anyOf ?? found.oneOf ?? found.allOf) {
      const { anyOf, oneOf, allOf, ...beside } = found;
      const choices = anyOf ?? oneOf ?? allOf;
      const some = choices.filter((choice) => choice.type !== "null");
      nullable ||= some.length < choices.length;
      binary ||= some.some((choice) => choice.format === "binary");
      found = { ...some[0], ...beside };
    } else {
      const isBinary = binary || found.binary || found.format === "binary";
      return { ...found, nullable: nullable || Boolean(found.nullable), binary: isBinary };
    }
  }
}

/** What a number may be: `{min, max, step}`; those that are not said are undefined. */
export function bounds(schema) {
  const first = (names) => names.map((name) => schema[name]).find((value) => value !== undefined);
  const step = schema.multipleOf ?? (schema.type === "integer" ? 1 : undefined);
  return { min: first(BOUNDS.min), max: first(BOUNDS.max), step };
}

/** A name as a person writes it: `clip_skip` is "Clip skip". */
export function worded(name) {
  const words = String(name).replaceAll(/[_.]+/g, " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}
