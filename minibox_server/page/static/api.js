// The only module that talks to the daemon, and the only one that knows the token: it is asked for once, when a request
// is refused for the lack of it, and lives in a variable here until the page is closed. It is in no URL and no storage.

// A refusal is a problem document, whatever is asked for.
const STREAM = "application/x-ndjson, application/json;q=0.5";

// What the user last said when they were asked; each answer is another object, though it may have no token either.
let answer = { token: null };
let asking = null;
let askForToken = async () => null;

/**
 * Return what is called when something is asked for that is asked for again and again. It returns what says, when the
 * answer is there, whether nothing was asked for later: what was asked later is newer, whenever it comes.
 */
export function newest() {
  let last = 0;
  return () => {
    last += 1;
    const number = last;
    return () => number === last;
  };
}

/** What went wrong, as one sentence; `status` is 0 where no answer came. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** Say who asks the user for the token: a function of whether one was refused, that promises a text or null. */
export function onMissingToken(ask) {
  askForToken = ask;
}

/** Whether a request needs more than an address, so that a plain link would be refused. */
export function hasToken() {
  return answer.token !== null;
}

/** Return the address of an endpoint with its parameters; null and false are left out, true is 1. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  url.hash = "";
  for (const [name, value] of Object.entries(query)) {
    if (value === null || value === undefined || value === false) continue;
    url.searchParams.append(name, value === true ? 1 : value);
  }
  return url.href;
}

/** Ask, and return the decoded JSON of the answer. */
export async function ask(path, { method = "GET", query, signal, isQuiet } = {}) {
  const response = await send(path, { method, query, signal, isQuiet, accept: "application/json" });
  const isJson = response.headers.get("Content-Type")?.includes("json");
  return (isJson ? response.json() : response.text()).catch((error) => { throw cut(error); });
}

/**
 * Ask, and return the answer, whose body is still to be read; a refusal is thrown. Where the user has asked for nothing
 * (`isQuiet`), they are not asked for the token either; where they are being asked, what they say holds for it too.
 */
export async function send(path, options = {}) {
  const { method = "GET", query, signal, accept = "*/*", headers = {}, isQuiet = false } = options;
  for (;;) {
    const before = answer;
    const response = await reach(address(path, query), {
      method,
      signal,
      headers: { ...headersOf(accept), ...headers },
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
    if (response.ok) return response;
    const sentence = await sentenceOf(response);
    const isUnasked = isQuiet && answer === before && asking === null;
    if (response.status !== 401 || isUnasked) throw new Refused(response.status, sentence);
    await renewToken(before);
  }
}

/**
 * Ask, and yield each event of the answer but the last, whose fields are returned; an error at its end is thrown.
 * `onBegun` is called when the answer has begun.
 */
export async function* follow(path, { method = "POST", query, signal, isQuiet, onBegun = () => {} } = {}) {
  const response = await send(path, { method, query, signal, isQuiet, accept: STREAM });
  onBegun();
  // Where there is nothing to be told on the way, the answer is what the last event would be.
  if (isWhole(response.headers.get("Content-Type"))) return response.json();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const lines = new Lines();
  for (;;) {
    const { value, done } = await reader.read().catch((error) => { throw cut(error); });
    if (done) throw cut();
    for (const event of lines.add(value)) {
      if (event.event === "result") return event;
      if (event.event === "error") throw new Refused(event.status, event.detail);
      yield event;
    }
  }
}

/**
 * Send a file, and call `onSent(bytes)` and `onEvent(event)` as it goes; promise the fields of the last event.
 * A fetch tells nothing of how far a body is, which is why this is the older kind of request.
 */
export async function upload(path, file, { query, signal, onSent, onEvent }) {
  await ask("ping", { signal }); // a token that is missing is asked for before the first byte, not after the last one
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const lines = new Lines();
    let read = 0;
    const take = (events) => {
      for (const event of events) {
        if (event.event === "result") resolve(event);
        else if (event.event === "error") reject(new Refused(event.status, event.detail));
        else onEvent(event);
      }
    };
    const takeMore = () => {
      if (request.status !== 200 || isWhole(request.getResponseHeader("Content-Type"))) return;
      const text = request.responseText;
      take(lines.add(text.slice(read)));
      read = text.length;
    };
    request.open("POST", address(path, query));
    for (const [name, value] of Object.entries(headersOf(STREAM))) {
      request.setRequestHeader(name, value);
    }
    request.setRequestHeader("Content-Type", "application/x-tar");
    const finish = () => {
      const { status } = request;
      if (status !== 200) return reject(new Refused(status, sentenceIn(request.responseText, status)));
      if (isWhole(request.getResponseHeader("Content-Type"))) return resolve(JSON.parse(request.responseText));
      takeMore();
      return reject(cut());
    };
    request.upload.onprogress = (event) => onSent(event.loaded);
    request.onprogress = takeMore;
    request.onload = finish;
    request.onerror = () => reject(cut());
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** Lines of JSON out of pieces of text; one that has no end is none. */
class Lines {
  #rest = "";

  add(piece) {
    const lines = (this.#rest + piece).split("\n");
    this.#rest = lines.pop();
    return lines.filter((line) => line.trim()).map((line) => JSON.parse(line));
  }
}

function isWhole(type) {
  return (type ?? "").startsWith("application/json");
}

function headersOf(accept) {
  const { token } = answer;
  return token === null ? { Accept: accept } : { Accept: accept, Authorization: `Bearer ${token}` };
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The daemon does not answer.");
  }
}

async function renewToken(before) {
  // Several requests may be refused at once, some of them late. The user is asked once, and what they say, be it no,
  // holds for all that were sent before.
  if (answer === before) {
    asking ??= askForToken(answer.token !== null)
      .then((given) => { answer = { token: given }; })
      .finally(() => { asking = null; });
    await asking;
  }
  if (answer.token === null) throw new Refused(401, "This daemon wants a token, and none was given.");
}

async function sentenceOf(response) {
  return sentenceIn(await response.text().catch(() => ""), response.status);
}

function sentenceIn(text, status) {
  try {
    const problem = JSON.parse(text);
    return problem.detail ?? problem.title ?? `The daemon answered with status ${status}.`;
  } catch {
    return text.trim().split("\n")[0] || `The daemon answered with status ${status}.`;
  }
}

/** Return what is thrown where the body of an answer could not be read to its end because of `error`, if of any. */
export function cut(error) {
  if (error?.name === "AbortError") return error;
  return new Refused(0, "The connection ended before the answer was whole.");
}
