// Numbers, times and names as people read them. Nothing here trusts what it is given to be what it should.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const STEPS = [
  [60, "second"], [60, "minute"], [24, "hour"], [7, "day"], [4.35, "week"], [12, "month"], [Infinity, "year"],
];
const AGES = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** 3404092 -> "3.4 MB". */
export function bytes(count) {
  let value = Number(count) || 0;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.5 ? 0 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** A time of RFC 3339 -> "3 weeks ago"; null where it is none, or none that an image could have been made at. */
export function age(text, now = Date.now()) {
  const at = typeof text === "string" ? Date.parse(text) : NaN;
  // Builds that can be repeated write the first second of 1970, or one near it: that is no age.
  if (Number.isNaN(at) || at < 86400000 * 366) return null;
  let value = (at - now) / 1000;
  for (const [length, unit] of STEPS) {
    if (Math.abs(value) < length) return AGES.format(Math.round(value), unit);
    value /= length;
  }
  return null;
}

/** "sha256:48d9183eb12a05…" -> "48d9183eb12a". */
export function short(digest) {
  return String(digest).split(":").pop().slice(0, 12);
}

/** (1, "layer") -> "1 layer"; (3, "layer") -> "3 layers"; a plural of its own is the third argument. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** A file name for an archive of an image. */
export function fileName(image) {
  return `${image.replace(/[^A-Za-z0-9._-]+/g, "_")}.tar`;
}
