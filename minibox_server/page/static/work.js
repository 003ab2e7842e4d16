// What takes long: pulls, loads, downloads, checks. Each is one Work; so many of them run at once, the rest wait for
// their turn here, because a browser opens few connections to one host, and the rest of the page needs one too.

import { Progress } from "./progress.js";

const AT_ONCE = 3;

const waiting = [];
let running = 0;
let onStarted = () => {};

/** Say who shows each piece of work from now on. */
export function onWork(listener) {
  onStarted = listener;
}

/** Whether anything is being done, or is to be done. */
export function isWorking() {
  return running + waiting.length > 0;
}

/** One long operation. Its events: `change` as it goes, and once `end`. */
export class Work extends EventTarget {
  #controller = new AbortController();

  /**
   * `title` says what is done; `run(work)` does it, takes the events to `work.take`, heeds `work.signal`, and promises
   * the sentence that is shown at its end; `cancelled` is the one that is shown if it is cancelled.
   */
  constructor(title, run, cancelled) {
    super();
    this.title = title;
    this.run = run;
    this.cancelled = cancelled;
    this.progress = new Progress();
    /** queued, running, done, failed or cancelled */
    this.state = "queued";
    this.sentence = "";
    this.startedAt = null;
  }

  get signal() {
    return this.#controller.signal;
  }

  get hasEnded() {
    return !["queued", "running"].includes(this.state);
  }

  take(event) {
    this.progress.take(event);
    this.dispatchEvent(new Event("change"));
  }

  cancel() {
    this.#controller.abort();
    if (this.state === "queued") this.#end("cancelled", "Cancelled before it began.");
  }

  async begin() {
    this.state = "running";
    this.startedAt = performance.now();
    this.dispatchEvent(new Event("change"));
    try {
      this.#end("done", await this.run(this));
    } catch (error) {
      if (this.signal.aborted) this.#end("cancelled", this.cancelled);
      else this.#end("failed", error.message);
      // Nobody reads what is still to come.
      this.#controller.abort();
    }
  }

  #end(state, sentence) {
    this.state = state;
    this.sentence = sentence;
    this.dispatchEvent(new Event("change"));
    this.dispatchEvent(new Event("end"));
  }
}

/** Start a piece of work, now or when it is its turn, and return it. */
export function start(title, run, cancelled = "Cancelled.") {
  const work = new Work(title, run, cancelled);
  waiting.push(work);
  onStarted(work);
  advance();
  return work;
}

/** Show what nobody saw fail as a piece of work that did. */
export function showFailed(title, error) {
  const work = new Work(title, () => Promise.reject(error));
  onStarted(work);
  work.begin();
}

function advance() {
  while (running < AT_ONCE && waiting.length) {
    const work = waiting.shift();
    if (work.hasEnded) continue;
    running += 1;
    work.begin().finally(() => {
      running -= 1;
      advance();
    });
  }
}
