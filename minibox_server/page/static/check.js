// Verify: every byte of every image is read and hashed; what is wrong is listed, and nothing is changed.

import { follow } from "./api.js";
import { button, make, more, replace } from "./dom.js";
import { wordsFor } from "./picture.js";
import { finish } from "./pull.js";
import { start } from "./work.js";
import { count } from "./words.js";

// As many of a damaged disk as anybody reads, and as many names of each.
const MOST_ROWS = 200;
const MOST_NAMES = 20;

// It outlives the view: who has left it finds here what was found meanwhile.
const findings = make("ul", { class: "findings" });

/** Return the panel. */
export function checkPanel() {
  const run = () => start("Verify the store", async (work) => {
    replace(findings);
    const report = await finish(follow("system/verify", { signal: work.signal }), work);
    const found = report.findings.filter((each) => each.is_damage);
    replace(findings, found.slice(0, MOST_ROWS).map(item), more(found, MOST_ROWS, "li"));
    if (!found.length) return "Every byte is what it should be.";
    return `${count(found.length, "finding")}, listed in the view Space.`;
  });
  return make("section", { class: "card", "aria-labelledby": "verify" },
    make("h2", { id: "verify" }, "Verify"),
    make("p", {}, "Reads and hashes every byte of every image. Nothing is changed."),
    button("Verify every byte", run), findings);
}

function item({ kind, path, problem, names }) {
  return make("li", {}, make("strong", {}, kind), " ", make("code", {}, path), " ", problem,
    names.length > 0 && ` (${wordsFor({ names: names.slice(0, MOST_NAMES), count: names.length })})`);
}
