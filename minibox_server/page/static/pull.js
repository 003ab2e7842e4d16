// Pulling: a reference, a platform, and the work that comes of it.

import { follow } from "./api.js";
import { AS_TYPED, field, make } from "./dom.js";
import { refresh } from "./holdings.js";
import { start } from "./work.js";
import { short } from "./words.js";

const PLATFORMS = [
  "linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x",
];

/** Return the form. */
export function pullForm() {
  const image = make("input", { name: "image", required: true, placeholder: "alpine:3.20", ...AS_TYPED });
  const platform = make("input", { name: "platform", list: "platforms", value: PLATFORMS[0], ...AS_TYPED });
  const form = make("form", { class: "card pull" },
    make("h2", {}, "Pull an image"),
    make("div", { class: "row" },
      field("Image", image), field("Platform", platform),
      make("datalist", { id: "platforms" }, PLATFORMS.map((each) => make("option", { value: each }))),
      make("button", { type: "submit", class: "main" }, "Pull")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    pull(image.value.trim(), platform.value.trim() || null);
    image.value = "";
    image.focus();
  });
  return form;
}

/** Pull an image. */
export function pull(image, platform) {
  start(`Pull ${image}`, async (work) => {
    const result = await finish(follow("images/pull", { query: { image, platform }, signal: work.signal }), work);
    await refresh();
    const digest = result.digest ?? work.progress.digest;
    return digest ? `It is here: ${short(digest)}.` : "It is here.";
  }, "Cancelled. What had arrived is used by the next try.");
}

/** Give each event of an operation to its work, and promise the fields of the last one. */
export async function finish(events, work) {
  for (;;) {
    const { value, done } = await events.next();
    if (done) return value;
    work.take(value);
  }
}
