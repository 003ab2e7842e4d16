// What is done with one image: download, tag, remove; and the way back in, load.

import { address, ask, cut, hasToken, send, upload } from "./api.js";
import * as dialogs from "./dialogs.js";
import { AS_TYPED, field, make } from "./dom.js";
import { refresh, usageOf } from "./holdings.js";
import { tell } from "./telling.js";
import { showFailed, start } from "./work.js";
import { bytes, fileName } from "./words.js";

const FORMATS = {
  both: "For every tool: an OCI layout, and docker's form",
  oci: "OCI layout",
  docker: "Docker",
  minibox: "This program's own",
};

/** Ask for the form of an archive, and let the browser keep one of this image. */
export async function saveImage(image) {
  const format = make("select", {}, Object.entries(FORMATS).map(([value, label]) => make("option", { value }, label)));
  const chosen = await dialogs.ask({
    title: `Download ${image.name}`,
    content: field("Form", format, `About ${bytes(image.size_bytes)}.`),
    yes: "Download",
    confirm: async () => {
      const query = { image: image.name, format: format.value };
      // The file is chosen while the click still counts as the user's.
      const file = await chooseFile(fileName(image.name));
      // A download of the browser's own does not say why it was refused; so its first byte is asked for here.
      if (file === null && !hasToken()) {
        await (await send("images/archive", { query, headers: { Range: "bytes=0-0" } })).arrayBuffer();
      }
      return { query, file };
    },
  });
  if (chosen === null) return;
  const { query, file } = chosen;
  if (file === null && !hasToken()) {
    // Where no header is needed, the browser's own download is the best there is.
    keep(address("images/archive", query), fileName(image.name));
    tell(`The download of ${image.name} has begun.`);
    return;
  }
  start(`Download ${image.name}`, (work) => receive(query, file, fileName(image.name), work));
}

/** Send a file to the store. */
export function loadFile(file) {
  start(`Load ${file.name}`, async (work) => {
    const whole = { event: "progress", phase: "sending", total_bytes: file.size };
    const sent = (count) => work.take({ ...whole, done_bytes: count });
    const onEvent = (event) => work.take(event);
    const result = await upload("images/load", file, { signal: work.signal, onSent: sent, onEvent });
    await refresh();
    const names = (result.images ?? result.loaded ?? []).map((each) => each.name ?? each);
    return names.length ? `Here now: ${names.join(", ")}.` : "Its images are here.";
  });
}

/** Ask for a further name for an image, and write it. */
export async function tagImage(name) {
  const input = make("input", { required: true, value: name, autofocus: true, ...AS_TYPED });
  const given = await outcomeOf(`Tag ${name}`, {
    title: `Tag ${name}`,
    content: field("New name", input, "The image keeps the name that it has; a name of another image moves."),
    yes: "Tag",
    confirm: async () => {
      const newName = input.value.trim();
      await ask("images/tag", { method: "POST", query: { image: name, new_name: newName } });
      return newName;
    },
  });
  if (given === null) return;
  tell(`${name} is ${given} too.`);
  await refresh();
}

/** Ask whether a name is to go, and take it away. Promises whether it went. */
export async function removeImage(image) {
  const { name } = image;
  const own = usageOf(image)?.own_bytes;
  const gone = await outcomeOf(`Remove ${name}`, {
    title: `Remove ${name}?`,
    content: make("p", {}, "The name goes. Its bytes stay until a prune",
      own === undefined ? "." : `, which can free ${bytes(own)} then.`),
    yes: "Remove",
    isDangerous: true,
    confirm: () => ask("images/remove", { method: "POST", query: { image: name } }),
  });
  if (gone === null) return false;
  tell(`${name} is removed.`);
  await refresh();
  return true;
}

// Who closes the dialog of what was sent takes nothing back: what comes of it is told in every view.
async function outcomeOf(doing, question) {
  try {
    return await dialogs.ask({ ...question, isSent: true });
  } catch (error) {
    showFailed(doing, error);
    return null;
  }
}

async function chooseFile(suggestedName) {
  if (!window.showSaveFilePicker) return null;
  try {
    return await window.showSaveFilePicker({ suggestedName });
  } catch (error) {
    if (error.name === "AbortError") throw new Error("No file was chosen.");
    throw error;
  }
}

async function receive(query, file, name, work) {
  const response = await send("images/archive", { query, signal: work.signal });
  const total = Number(response.headers.get("Content-Length")) || null;
  let done = 0;
  const counted = response.body.pipeThrough(new TransformStream({
    transform(piece, controller) {
      done += piece.byteLength;
      work.take({ event: "progress", phase: "receiving", done_bytes: done, total_bytes: total });
      controller.enqueue(piece);
    },
  }));
  if (file !== null) {
    // What is not whole is thrown away by the browser: the file is there when its stream is closed, not before.
    await counted.pipeTo(await file.createWritable(), { signal: work.signal }).catch(sayWhy);
    return `${bytes(done)}, in the file that was chosen.`;
  }
  const url = URL.createObjectURL(await new Response(counted).blob().catch(sayWhy));
  keep(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  return `${bytes(done)}, in the folder for downloads.`;
}

// What the file says of itself is more than that the answer was cut.
function sayWhy(error) {
  throw error instanceof TypeError ? cut(error) : error;
}

function keep(url, name) {
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
