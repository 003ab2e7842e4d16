// The view of the store's bytes: whose they are, what a prune would give back, and whether they are right.

import { ask } from "./api.js";
import { checkPanel } from "./check.js";
import { make, notice, redraw, replace, table } from "./dom.js";
import { holdings, onHoldings, refresh } from "./holdings.js";
import { neededBy, Picture } from "./picture.js";
import { prunePanel } from "./prune.js";
import { bytes, count, short } from "./words.js";

const MOST_ROWS = 50;

/** Return the view, and what ends it. */
export function spaceView() {
  const picture = new Picture();
  const numbers = make("div", { class: "numbers" });
  const place = make("p", { class: "quiet" });
  const body = make("div", {});
  const trouble = make("div", {});
  const [title, rows] = [make("summary", {}), make("div", {})];
  const blobs = make("details", { class: "card" }, title, rows);
  const draw = () => {
    const { usage } = holdings;
    const problem = holdings.problem ?? holdings.usageProblem;
    replace(trouble, problem !== null && notice(problem, refresh));
    if (usage === null) {
      replace(numbers);
      replace(body, problem === null && make("p", { class: "quiet" }, "Asking the daemon…"));
      return;
    }
    replace(numbers,
      number(bytes(usage.total_bytes), "in all blobs"),
      number(sharedBytes(usage), "needed by more than one image"),
      number(bytes(usage.reclaimable_bytes), "needed by none"));
    if (!usage.blobs.length) {
      replace(body, make("div", { class: "empty" },
        make("h2", {}, "No bytes yet"), make("p", {}, "Pull or load an image, and see what it is made of.")));
      return;
    }
    if (!body.contains(picture.element)) replace(body, legend(), picture.element, picture.details, blobs);
    picture.show(usage);
    const label = labelOf(usage);
    replace(title, label);
    replace(rows, blobTable(label, usage.blobs));
  };
  const view = make("div", {}, trouble, numbers, place, body);
  const show = () => redraw(view, draw);
  const ends = onHoldings(show);
  // What is told of the place is no more than a word beside the numbers: without it the view is whole.
  const tellPlace = (info) => { place.textContent = `In ${info.data_root}, minibox-store ${info.version}.`; };
  ask("system/info").then(tellPlace).catch(() => {});
  // It is drawn for the width that it has, which it has when it stands in the page.
  requestAnimationFrame(show);
  return {
    view: [
      make("h1", { tabindex: "-1" }, "Space"), view,
      make("div", { class: "ways" }, prunePanel(), checkPanel()),
    ],
    end: () => { ends(); picture.end(); },
  };
}

function number(value, label) {
  return make("p", {}, make("b", {}, value), make("span", {}, label));
}

// Of very many blobs only the largest are told of: those that are not may be shared, too.
function sharedBytes(usage) {
  const shared = usage.blobs.filter((blob) => blob.needed_by > 1).reduce((sum, blob) => sum + blob.size_bytes, 0);
  return usage.blobs.length < usage.blob_count ? `at least ${bytes(shared)}` : bytes(shared);
}

function legend() {
  return make("p", { class: "legend" },
    make("span", {}, make("i", { class: "swatch own" }), "one image's own"),
    make("span", {}, make("i", { class: "swatch shared" }), "shared, drawn once"),
    make("span", {}, make("i", { class: "swatch unneeded" }), "needed by none"),
    make("span", { class: "quiet" }, "Choose a piece, or walk with the arrow keys."));
}

function labelOf({ blobs, blob_count: all }) {
  const shown = Math.min(blobs.length, MOST_ROWS);
  return `${shown < all ? `The largest ${shown} of` : "All"} ${count(all, "blob")}`;
}

function blobTable(label, blobs) {
  const rows = blobs.slice(0, MOST_ROWS).map((blob) => [
    [blob.kind ?? "blob", " ", make("code", { title: blob.digest }, short(blob.digest))],
    bytes(blob.size_bytes),
    make("span", { title: blob.images.join(", ") }, neededBy({ names: blob.images, count: blob.needed_by })),
  ]);
  return table(label, ["Blob", "Size", "Needed by"], rows);
}
