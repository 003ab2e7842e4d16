// The picture of the store: each blob once, as large as its bytes, beside those that the same images need.

import { draw, facts, make, replace } from "./dom.js";
import { squarify } from "./treemap.js";
import { bytes, count, short } from "./words.js";

const TONES = 8;
const LABEL = 22;
// As the style has them.
const FONTS = { name: "600 12px", size: "400 12px" };
const FAMILY = getComputedStyle(document.body).fontFamily;
const ruler = document.createElement("canvas").getContext("2d");
const GAP = 3;
// What is smaller than so many square pixels would be a line: such blobs of one group are drawn as one.
const LEAST_AREA = 60;

/**
 * Return `{key, names, count, blobs, size, tone}` for each set of images that needs blobs of its own, the largest
 * first. `blobs` are as the daemon tells them; `tone` is a number for one image, "shared", "unneeded" or "rest".
 */
export function groupBlobs(usage) {
  const groups = new Map();
  for (const blob of usage.blobs) {
    const key = `${blob.needed_by}\n${blob.images.join("\n")}`;
    if (!groups.has(key)) groups.set(key, { key, names: blob.images, count: blob.needed_by, blobs: [], size: 0 });
    const group = groups.get(key);
    group.blobs.push(blob);
    group.size += blob.size_bytes;
  }
  const sorted = [...groups.values()].sort((one, other) => other.size - one.size);
  let tone = 0;
  for (const group of sorted) {
    if (group.count === 1) tone += 1;
    group.tone = ["unneeded", tone % TONES][group.count] ?? "shared";
  }
  return [...sorted, ...restOf(usage)];
}

/** The words for whom blobs are needed by. */
export function neededBy({ names, count: images }) {
  if (!images) return "needed by no image";
  return images === 1 ? names[0] ?? "an image without a name" : `shared by ${count(images, "image")}`;
}

// Of very many blobs the daemon tells the largest one by one; the others are one piece.
function restOf(usage) {
  const size = usage.total_bytes - usage.blobs.reduce((sum, blob) => sum + blob.size_bytes, 0);
  const number = usage.blob_count - usage.blobs.length;
  if (number <= 0 || size <= 0) return [];
  const piece = { digest: "", size_bytes: size, kind: count(number, "smaller blob") };
  return [{ key: "rest", names: [], count: null, blobs: [piece], size, tone: "rest" }];
}

/** The picture as an element, which draws itself anew for the width that it has. */
export class Picture {
  #width = 0;

  constructor() {
    this.details = make("div", { class: "details" });
    this.element = make("div", { class: "picture" });
    this.groups = [];
    this.chosen = null;
    this.observer = new ResizeObserver(([entry]) => {
      if (Math.round(entry.contentRect.width) !== this.#width) this.#draw();
    });
    this.observer.observe(this.element);
  }

  /** Show the blobs of a store. */
  show(usage) {
    this.groups = groupBlobs(usage);
    this.#draw();
  }

  /** Show nothing any more. */
  end() {
    this.observer.disconnect();
  }

  #draw() {
    const width = Math.round(this.element.clientWidth);
    this.#width = width;
    if (!width) return;
    // What is chosen tells of itself anew, if it is still there.
    replace(this.details);
    const height = Math.round(width < 500 ? width * 1.2 : Math.min(520, width * 0.5));
    const svg = draw("svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "listbox", "aria-label": "Blobs by size",
      onkeydown: (event) => this.#move(event),
    }, stripes());
    for (const cell of squarify(this.groups, { x: 0, y: 0, width, height })) svg.append(this.#group(cell));
    const had = this.element.contains(document.activeElement);
    replace(this.element, svg);
    const cells = this.#cells();
    const current = cells.find((cell) => cell.dataset.key === this.chosen) ?? cells[0];
    current?.setAttribute("tabindex", "0");
    if (had) current?.focus({ preventScroll: true });
  }

  #group({ item: group, x, y, width, height }) {
    const name = nameOf(group);
    const hasLabel = width > 60 && height > LABEL + 24;
    const top = hasLabel ? LABEL : 0;
    const room = (length) => Math.max(0, length);
    const box = { x: x + GAP / 2, y: y + top, width: room(width - GAP), height: room(height - top - GAP) };
    const scale = (box.width * box.height) / group.size;
    const large = group.blobs.filter((blob) => blob.size_bytes * scale >= LEAST_AREA);
    const small = group.blobs.filter((blob) => blob.size_bytes * scale < LEAST_AREA);
    const items = large.map((blob) => ({ size: blob.size_bytes, blobs: [blob] }));
    if (small.length) items.push({ size: small.reduce((sum, blob) => sum + blob.size_bytes, 0), blobs: small });
    return draw("g", { role: "group", "aria-label": `${name}, ${bytes(group.size)}`, class: `tone-${group.tone}` },
      hasLabel && words(fit(name, width - 3 * GAP, FONTS.name), { class: "name", x: x + GAP, y: y + 15 }),
      squarify(items, box).map((cell) => this.#cell(cell, group)));
  }

  #cell({ item, x, y, width, height }, group) {
    const [first] = item.blobs;
    const one = `${first.kind ?? "blob"} ${short(first.digest)}`.trim();
    const what = item.blobs.length > 1 ? count(item.blobs.length, "small blob") : one;
    const isWide = width > 54 && height > 24;
    const key = `${group.key}\n${first.digest}`;
    const choose = () => this.#choose(key, item, group, what);
    if (this.chosen === key) choose();
    return draw("g", {
      role: "option", tabindex: "-1", "aria-selected": String(this.chosen === key), "data-key": key, class: "cell",
      "aria-label": `${what}, ${bytes(item.size)}, ${nameOf(group)}`,
      onfocus: choose, onclick: (event) => event.currentTarget.focus(),
    },
    draw("rect", { x: x + 0.5, y: y + 0.5, width: Math.max(0.5, width - 1), height: Math.max(0.5, height - 1), rx: 3 }),
    isWide && words(fit(bytes(item.size), width - 10, FONTS.size), { x: x + 7, y: y + 17 }));
  }

  #choose(key, item, group, what) {
    this.chosen = key;
    for (const cell of this.#cells()) {
      const isChosen = cell.dataset.key === key;
      cell.setAttribute("aria-selected", String(isChosen));
      cell.setAttribute("tabindex", isChosen ? "0" : "-1");
    }
    replace(this.details, make("h3", {}, what), facts(
      ["Size", bytes(item.size)],
      ["Digest", item.blobs.length === 1 && item.blobs[0].digest ? make("code", {}, item.blobs[0].digest) : null],
      ["Needed by", wordsFor(group)],
    ));
  }

  #move(event) {
    const cells = this.#cells();
    const at = cells.indexOf(document.activeElement);
    const last = cells.length - 1;
    const steps = {
      ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last,
    };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    cells[Math.max(0, Math.min(last, steps[event.key]))].focus();
  }

  #cells() {
    return [...this.element.querySelectorAll(".cell")];
  }
}

function nameOf(group) {
  return group.count === null ? "all others" : neededBy(group);
}

/** The names of the images that need blobs, and how many more there are. */
export function wordsFor({ names, count: images }) {
  if (images === null) return null;
  if (!images) return "no image: a prune removes it";
  const more = images - names.length;
  return [...names, more > 0 && `${count(more, "image")} more`].filter(Boolean).join(", ");
}

// The words as they are, else what stands last in a name, else as much of its beginning as there is room for.
function fit(text, width, font) {
  ruler.font = `${font} ${FAMILY}`;
  const isShort = (words) => ruler.measureText(words).width <= width;
  for (const words of [text, text.split("/").pop()]) if (isShort(words)) return words;
  let letters = text.length - 1;
  while (letters > 2 && !isShort(`${text.slice(0, letters)}…`)) letters -= 1;
  return letters > 2 ? `${text.slice(0, letters)}…` : "";
}

// What they say is in the label of the piece that they stand on.
function words(text, place) {
  return draw("text", { ...place, "aria-hidden": "true" }, text);
}

function stripes() {
  const units = { patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  return draw("defs", {}, draw("pattern", { id: "stripes", width: 8, height: 8, ...units },
    draw("rect", { class: "ground", width: 8, height: 8 }), draw("rect", { class: "stripe", width: 3, height: 8 })));
}
