// How work is shown: one card for each, with a bar for the whole and one for each blob; who hears it is told of its
// beginning and its end.

import { button, make, replace } from "./dom.js";
import { tell } from "./telling.js";
import { bytes, count, short } from "./words.js";

const STATES = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled" };
const PHASES = {
  unpacking: "Unpacking", registering: "Writing its name", verifying: "Checking", resolving: "Asking",
  marking: "Looking for what is needed", removing: "Removing",
};
// What is counted while these go on.
const COUNTED = { marking: "image", removing: "thing" };
// Of these alone a rate can be told: the bytes of others are counted anew, or are no traffic.
const MOVES = ["moving", "sending", "receiving"];
const MOST_MESSAGES = 5;

/** Show a piece of work in `place` until its user puts it away. */
export function showWork(place, work) {
  const card = new Card(work, () => {
    card.element.remove();
    place.hidden = !place.children.length;
    document.getElementById("main").focus();
  });
  place.hidden = false;
  place.prepend(card.element);
  tell(`${work.title}: started.`);
}

class Card {
  #rows = new Map();
  #isDrawing = false;

  constructor(work, onPutAway) {
    this.work = work;
    this.bar = make("progress", { "aria-label": work.title });
    this.line = make("p", { class: "line" });
    this.blobs = make("ul", { class: "blobs", "aria-label": "Blobs" });
    this.details = make("details", { open: true, hidden: true }, make("summary", {}, "Blobs"), this.blobs);
    this.messages = make("ul", { class: "messages", hidden: true });
    this.ending = make("div", {}, button("Cancel", () => work.cancel(), { "aria-label": `Cancel: ${work.title}` }));
    this.state = make("span", { class: "state" });
    const head = make("div", { class: "head" }, make("h2", {}, work.title), this.state, this.ending);
    this.element = make("article", { class: "card work" }, head, this.bar, this.line, this.details, this.messages);
    work.addEventListener("change", () => this.#drawSoon());
    work.addEventListener("end", () => this.#end(onPutAway));
    this.#draw();
  }

  #drawSoon() {
    // Events come in bursts; a screen shows no more than one state of them at a time.
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    requestAnimationFrame(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  #draw() {
    const { work } = this;
    this.element.dataset.state = work.state;
    this.state.textContent = STATES[work.state];
    this.line.textContent = work.hasEnded ? work.sentence : lineOf(work);
    setBar(this.bar, work.state === "done" ? 1 : work.progress.part);
    this.bar.hidden = work.state === "failed" || work.state === "cancelled";
    this.details.hidden = !work.progress.blobs.size;
    for (const blob of work.progress.blobs.values()) this.#drawBlob(blob);
    const messages = work.progress.messages.slice(-MOST_MESSAGES);
    this.messages.hidden = !messages.length;
    replace(this.messages, messages.map((text) => make("li", {}, text)));
  }

  #drawBlob(blob) {
    let row = this.#rows.get(blob.digest);
    if (!row) {
      const name = nameOf(blob);
      row = { bar: make("progress", { "aria-label": name }), told: make("span", { class: "number" }) };
      const title = make("span", {}, name, " ", make("code", {}, short(blob.digest)));
      row.element = make("li", {}, title, row.told, row.bar);
      this.#rows.set(blob.digest, row);
      this.blobs.append(row.element);
    }
    row.element.dataset.phase = blob.phase;
    const isDone = this.work.state === "done";
    row.told.textContent = isDone ? endOf(blob) : toldOf(blob);
    setBar(row.bar, isDone ? 1 : blob.sizeBytes ? blob.doneBytes / blob.sizeBytes : null);
  }

  #end(onPutAway) {
    const { work } = this;
    this.details.open = false;
    const hadFocus = this.ending.contains(document.activeElement);
    replace(this.ending, button("Put away", onPutAway, { "aria-label": `Put away: ${work.title}` }));
    if (hadFocus) this.ending.firstChild.focus();
    tell(`${work.title}: ${STATES[work.state]}. ${work.sentence}`);
  }
}

function lineOf(work) {
  if (work.state === "queued") return "Waits until other work of this page is done.";
  const { progress } = work;
  const { ahead, counts, phase } = progress;
  if (ahead !== null) return `Waits its turn: ${ahead === 1 ? "1 pull is" : `${ahead} pulls are`} ahead.`;
  const seconds = (performance.now() - work.startedAt) / 1000;
  const moved = progress.bytes[0] - progress.resumedBytes;
  const parts = [
    PHASES[phase] ?? null,
    counts && COUNTED[phase] && `${counts[0].toLocaleString("en")} of ${count(counts[1], COUNTED[phase])}`,
    sizesOf(progress),
    seconds > 1 && moved > 0 && MOVES.includes(phase) ? `${bytes(moved / seconds)}/s` : null,
    progress.resumedBytes ? `resumed, ${bytes(progress.resumedBytes)} were here` : null,
  ];
  return parts.filter(Boolean).join(" · ");
}

function sizesOf({ bytes: [done, total], counts }) {
  if (total) return `${bytes(done)} of ${bytes(total)}`;
  if (done) return bytes(done);
  return counts ? null : "Asking…";
}

function nameOf(blob) {
  return blob.position && blob.total > 1 ? `${blob.role} ${blob.position} of ${blob.total}` : blob.role;
}

function toldOf(blob) {
  if (blob.phase === "present" || blob.phase === "stored") return endOf(blob);
  const done = `${bytes(blob.doneBytes)} of ${bytes(blob.sizeBytes)}`;
  if (blob.phase === "unpacking") return `unpacking, ${done}`;
  const resumed = blob.resumedBytes ? `, resumed at ${bytes(blob.resumedBytes)}` : "";
  const attempt = blob.attempt > 1 ? `, attempt ${blob.attempt}` : "";
  return `${done}${resumed}${attempt}`;
}

function endOf(blob) {
  return `${bytes(blob.sizeBytes)}, ${blob.wasPresent ? "was here" : "is here"}`;
}

function setBar(bar, part) {
  if (part === null) bar.removeAttribute("value");
  else bar.value = part;
}
