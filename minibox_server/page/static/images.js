// The view of all images: bring one in, find one, and what each is at a glance.

import { loadFile, removeImage, saveImage, tagImage } from "./actions.js";
import { AS_TYPED, button, draw, field, make, notice, redraw, replace } from "./dom.js";
import { holdings, onHoldings, refresh, usageOf } from "./holdings.js";
import { pullForm } from "./pull.js";
import { tell } from "./telling.js";
import { age, bytes, count, short } from "./words.js";

const ORDERS = {
  name: ["Name", (one, other) => one.name.localeCompare(other.name, "en")],
  size: ["Largest first", (one, other) => other.size_bytes - one.size_bytes],
  newest: ["Newest first", (one, other) => timeOf(other) - timeOf(one)],
  own: ["Frees most first", (one, other) => ownBytes(other) - ownBytes(one)],
};

// Thousands of rows would take seconds; nobody reads them, and the words above find each of them.
const MOST_ROWS = 200;

// What the user looks for stays while other views are looked at.
const looking = { words: "", order: "name", most: MOST_ROWS };

/** Return the view, and what ends it. */
export function imagesView() {
  const parts = {
    found: make("p", { class: "quiet found" }),
    trouble: make("div", {}),
    list: make("ul", { class: "images", "aria-label": "Images", hidden: true }),
    rest: make("div", {}),
    rows: new Map(),
    problem: null,
  };
  const { found } = parts;
  const place = make("div", {}, parts.trouble, parts.list, parts.rest);
  // A row that has the focus is replaced by its successor, which takes the focus over.
  const show = () => redraw(place, () => showImages(parts, show));
  const search = make("input", {
    type: "search", value: looking.words, placeholder: "alpine, arm64, sha256:48d9…", ...AS_TYPED,
    oninput: () => { looking.words = search.value; show(); tell(found.textContent); },
  });
  const order = make("select", { onchange: () => { looking.order = order.value; show(); } },
    Object.entries(ORDERS).map(([value, [label]]) =>
      make("option", { value, selected: value === looking.order }, label)));
  const tools = make("div", { class: "tools" }, field("Find", search), field("Order", order), found);
  show();
  const view = [
    make("h1", { tabindex: "-1" }, "Images"),
    make("div", { class: "ways" }, pullForm(), loadZone()),
    tools,
    place,
  ];
  return { view, end: onHoldings(show) };
}

function showImages(parts, showAnew) {
  const { found, trouble, list, rest } = parts;
  const { images } = holdings;
  const problem = holdings.problem ?? holdings.usageProblem;
  // Who hears it has heard it once, and not with each letter that is typed.
  if (problem !== parts.problem) replace(trouble, problem !== null && notice(problem, refresh));
  parts.problem = problem;
  if (images === null) {
    replace(rest, problem === null && make("p", { class: "quiet" }, "Asking the daemon…"));
    return;
  }
  const words = looking.words.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = images.filter((image) => words.every((word) => textOf(image).includes(word)));
  shown.sort(ORDERS[looking.order][1]);
  const total = holdings.usage?.total_bytes;
  found.textContent = words.length
    ? `${shown.length} of ${count(images.length, "image")}`
    : [count(images.length, "image"), total === undefined ? null : bytes(total)].filter(Boolean).join(", ");
  const largest = shown.reduce((most, image) => Math.max(most, image.size_bytes), 1);
  showRows(parts, shown.slice(0, looking.most), largest);
  list.hidden = !shown.length;
  const empty = images.length
    ? make("p", { class: "empty" }, "No image has these words.")
    : make("div", { class: "empty" }, make("h2", {}, "Nothing here yet"),
      make("p", {}, "Pull an image from a registry, or load an archive that somebody saved."));
  const showMore = () => {
    const next = looking.most;
    looking.most += MOST_ROWS;
    showAnew();
    list.children[next].querySelector("a").focus();
  };
  const more = shown.length > looking.most
    && button(`Show ${Math.min(MOST_ROWS, shown.length - looking.most)} more`, showMore,
      { class: "more", "data-focus": "more" });
  replace(rest, shown.length ? more : empty);
}

// The row of an image is the same as long as the image is: somebody may be about to press a button of it.
function showRows(parts, images, largest) {
  const before = parts.rows;
  parts.rows = new Map(images.map((image) => {
    const key = JSON.stringify([image, age(image.created)]);
    return [key, before.get(key) ?? row(image)];
  }));
  [...parts.rows.values()].forEach(({ size }, at) => replace(size, sizeOf(images[at], largest)));
  replace(parts.list, [...parts.rows.values()].map(({ element }) => element));
}

function row(image) {
  const { name } = image;
  const parts = [
    image.platform ?? (image.platforms?.length ? image.platforms.join(", ") : "no platform"),
    count(image.layers, "layer"),
    age(image.created) && make("time", { datetime: image.created, title: image.created }, `made ${age(image.created)}`),
    make("code", { title: image.digest }, short(image.digest)),
  ];
  const act = (label, does, properties = {}) =>
    button(label, does, { "aria-label": `${label} ${name}`, "data-focus": `${label} ${name}`, ...properties });
  const size = make("div", { class: "size" });
  const element = make("li", { class: "card image" },
    make("div", { class: "what" },
      make("h2", {}, make("a", { href: `#/image/${encodeURIComponent(name)}`, "data-focus": `Image ${name}` }, name),
        image.damaged && make("strong", { class: "mark" }, "damaged")),
      make("p", { class: "parts" }, parts.filter(Boolean).map((part) => make("span", {}, part)))),
    size,
    make("div", { class: "actions" },
      act("Download", () => saveImage(image)),
      act("Tag", () => tagImage(name)),
      act("Remove", () => removeImage(image), { class: "danger quiet" })));
  return { element, size };
}

function sizeOf(image, largest) {
  const usage = usageOf(image);
  const width = (size) => (100 * size) / largest;
  const own = usage ? width(usage.own_bytes) : width(image.size_bytes);
  const bar = draw("svg", { class: "share", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { class: "all", width: 100, height: 6 }),
    draw("rect", { class: "own", width: own, height: 6 }),
    usage && draw("rect", { class: "shared", x: own, width: width(usage.shared_bytes), height: 6 }));
  const shares = !usage ? null : usage.shared_bytes
    ? `${bytes(usage.shared_bytes)} shared, ${bytes(usage.own_bytes)} its own`
    : "shares nothing";
  return [make("b", {}, bytes(image.size_bytes)), bar, make("small", {}, shares)];
}

function loadZone() {
  const input = make("input", { type: "file", class: "unseen", id: "archive", onchange: () => {
    [...input.files].forEach(loadFile);
    input.value = "";
  }, multiple: true });
  const zone = make("div", { class: "card zone" },
    make("h2", {}, "Load an archive"),
    make("p", {}, "Drop a file here: an archive of this program, an OCI layout, or what docker saves."),
    input,
    make("label", { for: "archive", class: "button" }, "Choose a file"));
  const over = (isOver) => (event) => { event.preventDefault(); zone.classList.toggle("over", isOver); };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    [...event.dataTransfer.files].forEach(loadFile);
  });
  return zone;
}

function textOf(image) {
  const platforms = image.platforms ?? [image.platform];
  return [image.name, image.digest, ...platforms, image.damaged && "damaged"].join(" ").toLowerCase();
}

function timeOf(image) {
  return Date.parse(image.created) || 0;
}

function ownBytes(image) {
  return usageOf(image)?.own_bytes ?? 0;
}
