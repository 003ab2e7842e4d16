// What the store holds, as last asked: its images, and whose its bytes are. Who shows it is told when it changes.

import { ask, follow, newest, Refused } from "./api.js";

const SOON_MS = 150;
const AGAIN_MS = 5000;

/**
 * The images, and whose the bytes are: null until they are known. `problem` is why the images are not, or not as they
 * are now; `usageProblem` is the same of the bytes.
 */
export const holdings = { images: null, problem: null, usage: null, usageProblem: null };

const listeners = new Set();
const usages = new WeakMap();
const beginAsking = newest();
let told = null;

// Changes come in bursts, and without end. Nobody has asked for this, so nobody is asked for a token either.
const refreshSoon = inTurn(() => askAnew({ isQuiet: true }), SOON_MS);
// To weigh a large store takes seconds, and nobody waits for that who wants to see what is in it.
const weigh = inTurn(async () => hold(await askForUsage()));

/** Call `listener` at every change; return what ends that. */
export function onHoldings(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Ask anew, and tell everybody; what is promised is the images, and whose the bytes are is told when it is known. */
export function refresh() {
  return askAnew({});
}

async function askAnew(options) {
  const isNewest = beginAsking();
  const news = { problem: null };
  try {
    news.images = await ask("images", options);
  } catch (error) {
    news.problem = error.message;
  }
  if (!isNewest()) return;
  hold(news);
  if (news.problem === null) weigh();
}

// The token was asked for with the images, where it is needed.
async function askForUsage() {
  try {
    return { usage: await ask("system/df", { isQuiet: true }), usageProblem: null };
  } catch (error) {
    const usageProblem = `The daemon does not say whose the bytes are: ${error.message}`;
    // Who was not heard has said nothing against what was known before.
    return [0, 401].includes(error.status) ? { usageProblem } : { usage: null, usageProblem };
  }
}

function hold(news) {
  Object.assign(holdings, news);
  // What is the same stays where it is: somebody may be about to press it.
  const text = JSON.stringify(holdings);
  if (text === told) return;
  told = text;
  for (const listener of listeners) listener();
}

/** The bytes of an image: its own, and those that others need too; null where that is not known. */
export function usageOf({ name, digest }) {
  const { usage } = holdings;
  if (!usage) return null;
  // Each of very many images is asked for, and to sort them many times: so they are looked through once.
  if (!usages.has(usage)) usages.set(usage, new Map(usage.images.map((each) => [each.name, each])));
  const found = usages.get(usage).get(name);
  // The name may have moved since.
  return found && found.digest === digest ? found : null;
}

/** Refresh whenever the store changes, by whomever, as long as the page is seen. */
export async function keepFresh() {
  for (;;) {
    await untilSeen();
    await untilKnown();
    // A page that is not seen gives its connection back: a browser has few of them for one host.
    const controller = new AbortController();
    const hide = () => document.hidden && controller.abort();
    document.addEventListener("visibilitychange", hide);
    // A stream tells what happens from its beginning on, and the list is of before.
    const options = { method: "GET", signal: controller.signal, isQuiet: true, onBegun: refreshSoon };
    try {
      for await (const event of follow("events", options)) {
        if (["image", "prune", "missed"].includes(event.event)) refreshSoon();
      }
    } catch (error) {
      if (error instanceof Refused && error.status === 404) return;
      if (!controller.signal.aborted) await new Promise((resolve) => { setTimeout(resolve, AGAIN_MS); });
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    refreshSoon();
  }
}

/** Return what has something done after a pause: one at a time, and once more for all that want it meanwhile. */
function inTurn(work, pauseMs = 0) {
  let isWanted = false;
  let isBusy = false;
  return async () => {
    isWanted = true;
    if (isBusy) return;
    isBusy = true;
    try {
      while (isWanted) {
        await new Promise((resolve) => { setTimeout(resolve, pauseMs); });
        isWanted = false;
        await work();
      }
    } finally {
      isBusy = false;
    }
  };
}

function untilKnown() {
  return new Promise((resolve) => {
    const look = () => {
      if (holdings.images === null) return;
      listeners.delete(look);
      resolve();
    };
    listeners.add(look);
    look();
  });
}

function untilSeen() {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    look();
  });
}
