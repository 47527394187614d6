// Work that is done once a frame, however often it is asked for.

/** A function that has `paint` called in the next frame, with the latest arguments. */
export function framed(paint) {
  let latest = null;
  return (...args) => {
    if (!latest) requestAnimationFrame(() => {
      const now = latest;
      latest = null;
      paint(...now);
    });
    latest = args;
  };
}
