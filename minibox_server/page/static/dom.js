// Elements from values. Whatever comes from a registry, an image or a user becomes text: nothing here, and nothing
// anywhere on this page, reads a string as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** For a field whose words are names: they stay as they are typed. */
export const AS_TYPED = { autocomplete: "off", autocapitalize: "none", spellcheck: "false" };

// What turns the letters behind it round: with it one name looks like another, so it is written out.
const TURNING = /[\u202a-\u202e\u2066-\u2069]/g;

let fields = 0;

/**
 * Return an element. Of `properties`, `on…` functions are listeners, true and false switch an attribute, null and
 * undefined leave it out, and all others are attributes. Of `children`, null and false are left out.
 */
export function make(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Return an element of a picture. */
export function draw(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

/** Put these children, and nothing else, into an element; where they are there already, nothing is touched. */
export function replace(element, ...children) {
  const shown = shownOf(children);
  const { childNodes } = element;
  const isThere = shown.length === childNodes.length && shown.every((child, at) => child === childNodes[at]);
  if (!isThere) element.replaceChildren(...shown);
  return element;
}

/** Draw a part of the view anew by `draw()`; where what has the focus goes by that, the focus is given on. */
export function redraw(part, draw) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  draw();
  if (focused !== null && hasNoFocus()) focusAgain(focused);
}

/** Give the focus back: to an element, or to what took its place by the same `data-focus`, or to the view's heading. */
export function focusAgain(element) {
  const isSuccessor = (each) => each.dataset.focus === element.dataset.focus;
  const next = element.isConnected
    ? element
    : [...document.querySelectorAll("[data-focus]")].find(isSuccessor) ?? document.querySelector("h1");
  // Nobody has asked to be led there: what is read stays where it is.
  next?.focus({ preventScroll: true });
}

/** Whether what had the focus is gone, and the user has given it to nothing else since. */
export function hasNoFocus() {
  return document.activeElement === document.body;
}

/** Return a button that does something; its `label` is seen. */
export function button(label, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, label);
}

/** Return a labelled field: `input` under the words that say what it is, and over a hint that says more. */
export function field(label, input, hint = null) {
  fields += 1;
  input.id ||= `field-${fields}`;
  if (hint !== null) input.setAttribute("aria-describedby", `${input.id}-hint`);
  return make("div", { class: "field" },
    make("label", { for: input.id }, label), input, hint !== null && make("small", { id: `${input.id}-hint` }, hint));
}

/** Return what says why something is not shown, and a button by which it is asked for again. */
export function notice(problem, again) {
  return make("div", { class: "notice", role: "alert" }, make("p", {}, problem), button("Try again", () => again()));
}

/** Return how many more there are, where only the first `most` of the items are shown. */
export function more(items, most, tag = "p") {
  return items.length > most && make(tag, { class: "quiet" }, `and ${(items.length - most).toLocaleString("en")} more`);
}

/** Return terms and what they stand for; a pair whose second part is null is left out. */
export function facts(...pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", { class: "facts" }, shown.map(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
}

/** Return a table that is called `label` and scrolls by itself where it is too wide; its second column is sizes. */
export function table(label, columns, rows) {
  const head = columns.map((each, at) => make("th", { scope: "col", class: at === 1 ? "number" : null }, each));
  const cell = (content, at) => make("td", { class: at === 1 ? "number" : null }, content);
  const body = rows.map((cells) => make("tr", {}, cells.map(cell)));
  const properties = { class: "wide", tabindex: "0", role: "region", "aria-label": label };
  return make("div", { ...properties, "data-focus": columns.join(" ") },
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, body)));
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...shownOf(children));
  return element;
}

function shownOf(children) {
  const shown = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return shown.map((child) => (typeof child === "string" ? child.replace(TURNING, writtenOut) : child));
}

function writtenOut(character) {
  return `\\u${character.charCodeAt(0).toString(16)}`;
}
