// What the store holds, as last asked: its images, and whose its bytes are. Who shows it is told when it changes.

import { ask, follow, newest, Refused } from "./api.js";

const SOON_MS = 150;
const AGAIN_MS = 5000;

/** The images, and the bytes: null until they are known; `problem` is why they are not. */
export const holdings = { images: null, usage: null, problem: null };

const listeners = new Set();
const usages = new WeakMap();
const beginAsking = newest();
let isStale = false;
let renewing = null;
let told = null;

/** Call `listener` at every change; return what ends that. */
export function onHoldings(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Ask anew, and tell everybody. */
export function refresh() {
  return askAnew({});
}

async function askAnew(options) {
  const isNewest = beginAsking();
  const news = { problem: null };
  try {
    const usage = ask("system/df", options).catch(withoutUsage);
    [news.images, news.usage] = await Promise.all([ask("images", options), usage]);
  } catch (error) {
    news.problem = error.message;
  }
  if (!isNewest()) return;
  Object.assign(holdings, news);
  // What is the same stays where it is: somebody may be about to press it.
  const text = JSON.stringify(holdings);
  if (text === told) return;
  told = text;
  for (const listener of listeners) listener();
}

/** The bytes of one image: its own, and those that others need too; null where that is not known. */
export function usageOf(name) {
  const { usage } = holdings;
  if (!usage) return null;
  // Each of very many images is asked for, and to sort them many times: so they are looked through once.
  if (!usages.has(usage)) usages.set(usage, new Map(usage.images.map((each) => [each.name, each])));
  return usages.get(usage).get(name) ?? null;
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

function refreshSoon() {
  isStale = true;
  renewing ??= renew().finally(() => { renewing = null; });
}

// Changes come in bursts, and without end: there is one question at a time for all that came before it.
async function renew() {
  while (isStale) {
    await new Promise((resolve) => { setTimeout(resolve, SOON_MS); });
    isStale = false;
    // Nobody has asked for this, so nobody is asked for a token either.
    await askAnew({ isQuiet: true });
  }
}

function withoutUsage(error) {
  // The list is worth showing though a damaged image keeps its bytes from being counted.
  if (error.status === 401 || error.status === 0) throw error;
  return null;
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
